"""`glauber_step` and `linear_glauber_step`: the calls, their ops and backends."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from ggm_kernels import checks
from ggm_kernels.arguments.glauber_step import Update, idle_rows
from ggm_kernels.backends import checks_rows, kernel
from ggm_kernels.noise import NoiseLaw
from ggm_kernels.ops.glauber_update import (
    UPDATE_SCHEMA,
    check_logits,
    check_update,
    check_values,
    update_of,
)
from ggm_kernels.ops.library import register, writing
from ggm_kernels.ops.plans import NOT_RUN, Plans, look


def glauber_step(
    tokens: torch.Tensor,
    logits: torch.Tensor,
    positions: torch.Tensor | None,
    *,
    seed: int | torch.Tensor,
    step: int | torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    top_k: int | torch.Tensor | None = None,
    top_p: float | torch.Tensor | None = None,
    min_p: float | torch.Tensor | None = None,
    noise_rate: float | torch.Tensor | None = None,
    noise: NoiseLaw | None = None,
    normalize: bool = False,
    sample_ids: torch.Tensor | None = None,
    frozen: torch.Tensor | None = None,
    filter_order: str = "k_p_min",
    softcap: float | None = None,
    logit_shift: torch.Tensor | None = None,
    mixture: torch.Tensor | None = None,
    log_sum_exp: torch.Tensor | None = None,
    log_prob: torch.Tensor | None = None,
    keep_prob: torch.Tensor | None = None,
    raw_log_prob: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
    margin: torch.Tensor | None = None,
    argmax: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Resample tokens at given positions from their logits, in place: one reverse step of Glauber dynamics.

    Heat bath (no `noise_rate`) equals, in law,
    ``tokens[b, positions[b, k]] = torch.multinomial(logits[b, k].softmax(-1), 1)``. With `noise_rate` eps a
    token is first kept with probability ``sigmoid(g + log((1 - eps) / eps) - log pi(token))``, g its logit.

    Parameters
    ----------
    tokens : torch.Tensor
        Token ids, int32 or int64, shape [B, L]; written in place, so not an expanded tensor. A token is read,
        and must be in [0, V), only where `noise_rate` or `logit_shift` ask for it; elsewhere any may stand.
    logits : torch.Tensor
        float32, bfloat16 or float16, shape [B, K, V], V at most 2**22. A row that holds a NaN, or nothing
        but -inf, leaves its token as it was (one warning a process; raises under GGM_KERNELS_CHECK=1).
    positions : torch.Tensor or None
        Positions to update, int32 or int64, shape [B, K] or [K], distinct within a sequence; -1 in [B, K] is
        no position, and its row is passed over. None is all L positions.
    seed : int or torch.Tensor
        Key of the noise, 0 to 2**64 - 1; or int64, 0-d or [B], the same 64 bits.
    step : int or torch.Tensor
        Coordinate of the noise, 0 to 2**32 - 1: give every step another one. An int64 tensor, 0-d or [B], may
        change under a CUDA graph.
    temperature : float or torch.Tensor
        Logits are divided by it, in float32; 0 takes the largest logit (the first of equals).
    top_k, top_p, min_p : optional
        Applied after the temperature, each to what the ones before left, as Hugging Face's
        logits processors do. Equal logits share one fate: all stay or all go. Each, as the temperature, may
        be a tensor [B] or [B, K]: a row is then drawn as it would be alone.
    noise_rate : float or torch.Tensor, optional
        eps in [0, 1], floating, 0-d, [B], [B, 1] or [B, K]: keep-or-replace instead of heat bath.
    noise : NoiseLaw, optional
        Law pi of the noise, in the keep decision and in a mixture; None is uniform.
    normalize : bool
        Whether the keep decision subtracts the row's log-sum-exp from the logit, for logits that are not
        log-probabilities.
    sample_ids : torch.Tensor, optional
        Coordinate of each sequence, integer [B], values in [0, 2**40). Default 0, 1, .., B - 1.
    frozen : torch.Tensor, optional
        bool [B, L]: positions that never change. Their rows are not read, whatever is asked for.
    filter_order : str
        "k_p_min" is top-k, top-p, min-p; "p_k_min" is top-p, top-k, min-p.
    softcap : float, optional
        Logits become ``softcap * tanh(logits / softcap)`` before all else.
    logit_shift : torch.Tensor, optional
        Added to the logit of the token that stands there, float [B] or [B, K], after the soft cap: makes a
        denoiser's logits leave-one-out. By-products are of the logits with both.
    mixture : torch.Tensor, optional
        alpha in [0, 1], float [B] or [B, K]. The law drawn from is alpha softmax(z) + (1 - alpha) pi, z after
        temperature and filters, and the logit of the keep decision log(alpha exp(h) + (1 - alpha) pi(token)).
    log_sum_exp : torch.Tensor, optional
        Filled with the log-sum-exp of every row of logits (raw: no temperature, no filter), float32 [B, K].
        0 where the logits are log-probabilities: the calibration of a GGM.
    log_prob : torch.Tensor, optional
        Filled with the log-probability of the token drawn under the law that it was drawn from (temperature,
        filters and mixture included), float32 [B, K]; NaN where the token was kept.
    keep_prob : torch.Tensor, optional
        Filled with the probability of keeping the present token, float32 [B, K]; needs `noise_rate`. 1 where
        the token cannot be noise (eps or pi is 0).
    raw_log_prob : torch.Tensor, optional
        Filled with the log-probability of the token drawn under softmax(logits), float32 [B, K]; NaN where
        the token was kept.
    entropy : torch.Tensor, optional
        Filled with the entropy of softmax(logits / temperature) before filters, in nats, float32 [B, K].
    margin : torch.Tensor, optional
        Filled with the largest minus the second largest logit, float32 [B, K]; inf where V is 1.
    argmax : torch.Tensor, optional
        Filled with the token of the largest logit, the first of equals, int64 [B, K].
    backend : str, optional
        "reference", "cpu", "cuda" or "triton"; None is the best that is there.

    Returns
    -------
    torch.Tensor
        `tokens` itself.

    Raises
    ------
    TypeError, ValueError
        For an argument of wrong type, shape, device or range, or one that shares memory with `tokens` or a
        by-product; nothing is written.
    IndexError
        For a token outside [0, V) where it is read, a position outside [0, L) or twice in one sequence;
        nothing is written. On CPU, and on GPU if GGM_KERNELS_CHECK=1.

    Notes
    -----
    By-products are NaN, argmax -1, in rows without a position, frozen or without a law. A row that keeps its
    token is read only where `normalize` or a by-product other than log_prob and raw_log_prob asks for it.

    The draw is an exponential race of two levels on float32 scores. Of the groups of 1024 consecutive tokens
    the one with the largest log S - log E wins, S its mass, and inside it the token with the largest
    logit / temperature - log E. E = -log1p(-u), and u is one of 2**32 uniforms keyed by (seed, step, sample
    id, position, group or token). Events down to probability 2**-33 occur at their rate. Source: reverse
    process of arXiv 2405.17035; keep-or-replace is our derivation (docs/mathematics.md).
    """
    given = {
        "tokens": tokens, "logits": logits, "positions": positions, "sample_ids": sample_ids,
        "frozen": frozen, "noise_rate": noise_rate, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "min_p": min_p, "logit_shift": logit_shift, "mixture": mixture,
        "log_sum_exp": log_sum_exp, "log_prob": log_prob, "keep_prob": keep_prob,
        "raw_log_prob": raw_log_prob, "entropy": entropy, "margin": margin, "argmax": argmax,
    }  # fmt: skip
    looks = look((*given.values(), noise, normalize, filter_order, softcap, backend))
    lawless = _PLANS.run(looks, given, seed, step)
    if lawless != NOT_RUN:
        if lawless:
            _warn_of_lawless_rows()
        return tokens
    check_logits(logits)
    update = check_update(
        tokens, positions, logits, "logits", logits.shape[2], seed=seed, step=step, temperature=temperature,
        top_k=top_k, top_p=top_p, min_p=min_p, noise_rate=noise_rate, noise=noise, normalize=normalize,
        sample_ids=sample_ids, frozen=frozen, filter_order=filter_order, softcap=softcap,
        logit_shift=logit_shift, mixture=mixture, log_sum_exp=log_sum_exp, log_prob=log_prob,
        keep_prob=keep_prob, raw_log_prob=raw_log_prob, entropy=entropy, margin=margin, argmax=argmax,
        backend=backend,
    )  # fmt: skip
    _op(tokens, logits.detach(), *update)
    plan = lambda native: native.glauber_step(given, update_of(*update[:-1]))  # noqa: E731
    _PLANS.remember(looks, seed, step, backend, plan)
    return tokens


def linear_glauber_step(
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    positions: torch.Tensor | None,
    *,
    bias: torch.Tensor | None = None,
    seed: int | torch.Tensor,
    step: int | torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    top_k: int | torch.Tensor | None = None,
    top_p: float | torch.Tensor | None = None,
    min_p: float | torch.Tensor | None = None,
    noise_rate: float | torch.Tensor | None = None,
    noise: NoiseLaw | None = None,
    normalize: bool = False,
    sample_ids: torch.Tensor | None = None,
    frozen: torch.Tensor | None = None,
    filter_order: str = "k_p_min",
    softcap: float | None = None,
    logit_shift: torch.Tensor | None = None,
    mixture: torch.Tensor | None = None,
    log_sum_exp: torch.Tensor | None = None,
    log_prob: torch.Tensor | None = None,
    keep_prob: torch.Tensor | None = None,
    raw_log_prob: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
    margin: torch.Tensor | None = None,
    argmax: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """`glauber_step` on the logits ``hidden @ weight.T + bias``, which never exist as a whole.

    Parameters
    ----------
    tokens : torch.Tensor
        Token ids, int32 or int64, shape [B, L]; written in place.
    hidden : torch.Tensor
        float32, bfloat16 or float16, shape [B, K, d].
    weight : torch.Tensor
        Output embedding, dtype of `hidden`, shape [V, d]. Under autocast `hidden` may be of another dtype
        and is cast, so that no copy of the weight is made.
    positions : torch.Tensor or None
        As in `glauber_step`.
    bias : torch.Tensor, optional
        dtype of `weight`, shape [V].
    seed, step, temperature, top_k, top_p, min_p, noise_rate, noise, normalize, sample_ids, frozen
        As in `glauber_step`.
    filter_order, softcap, logit_shift, mixture
        As in `glauber_step`.
    log_sum_exp, log_prob, keep_prob, raw_log_prob, entropy, margin, argmax, backend
        As in `glauber_step`.

    Returns
    -------
    torch.Tensor
        `tokens` itself.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `glauber_step`.
    """
    hidden = checks.factors(hidden, weight, bias, dtypes=checks.FLOATS, dim=3)
    update = check_update(
        tokens, positions, hidden, "hidden", weight.shape[0], seed=seed, step=step, temperature=temperature,
        top_k=top_k, top_p=top_p, min_p=min_p, noise_rate=noise_rate, noise=noise, normalize=normalize,
        sample_ids=sample_ids, frozen=frozen, filter_order=filter_order, softcap=softcap,
        logit_shift=logit_shift, mixture=mixture, log_sum_exp=log_sum_exp, log_prob=log_prob,
        keep_prob=keep_prob, raw_log_prob=raw_log_prob, entropy=entropy, margin=margin, argmax=argmax,
        backend=backend,
    )  # fmt: skip
    _linear_op(tokens, hidden.detach(), weight.detach(), None if bias is None else bias.detach(), *update)
    return tokens


_PLANS = Plans("glauber_step")


def _run(tokens, logits, *arguments_and_backend):
    run = checked_kernel("glauber_step", arguments_and_backend[-1], tokens, logits.shape[2])
    checked_run("logits", run, tokens, (logits,), update_of(*arguments_and_backend[:-1]))


def _linear_run(tokens, hidden, weight, bias, *arguments_and_backend):
    run = checked_kernel("linear_glauber_step", arguments_and_backend[-1], tokens, weight.shape[0])
    checked_run("hidden", run, tokens, (hidden, weight, bias), update_of(*arguments_and_backend[:-1]))


def checked_kernel(op: str, backend: str, tokens: torch.Tensor, vocab_size: int) -> Callable:
    """Kernel of the op that serves `backend`, with the checks of values that it leaves to us."""
    name, run = kernel(op, backend, tokens.device)

    def checked(tokens, *rest):
        update = rest[-1]
        if name != "cpu":
            check_values(tokens, vocab_size, update)
        lawless = run(tokens, *rest)
        if lawless == OUT_OF_RANGE:  # the cpu kernel met a bad value and wrote nothing: name it
            check_values(tokens, vocab_size, update)
            raise AssertionError("the cpu kernel refused values that the checks accept")
        if lawless and not checks_rows():  # else `_check_rows` raises
            _warn_of_lawless_rows()

    return checked


OUT_OF_RANGE = -1  # instead of a number of rows, from kernels that check values themselves
_has_warned = False


def _warn_of_lawless_rows() -> None:
    global _has_warned
    if not _has_warned:
        _has_warned = True
        warnings.warn(
            "rows of logits with a NaN or nothing but -inf: their tokens stay as they were and their "
            "by-products are NaN; GGM_KERNELS_CHECK=1 raises at the first (said once a process)",
            RuntimeWarning,
            stacklevel=2,
        )


def checked_run(rows_name: str, run: Callable, tokens: torch.Tensor, rows: tuple, update: Update) -> None:
    """Run; under GGM_KERNELS_CHECK=1 raise for a row without a law, with nothing written."""
    by_products = update.by_products
    written = {"tokens": tokens, **by_products}
    read = dict(zip((rows_name, "weight", "bias"), rows, strict=False)) | update.read
    with writing(written, read):
        if checks_rows():
            _run_on_copies(rows_name, run, tokens, rows, update)
        else:
            run(tokens, *rows, update)


def _run_on_copies(rows_name: str, run: Callable, tokens: torch.Tensor, rows: tuple, update: Update) -> None:
    result = tokens.clone()
    results: dict[str, Any] = {name: torch.empty_like(value) for name, value in update.by_products.items()}
    idle = idle_rows(tokens, update)
    results.setdefault("log_sum_exp", tokens.new_empty(idle.shape, dtype=torch.float32))
    run(result, *rows, update._replace(**results))
    _check_rows(rows_name, results["log_sum_exp"], idle)
    tokens.copy_(result)
    for name, value in update.by_products.items():
        value.copy_(results[name])


def _check_rows(name: str, log_sum_exp: torch.Tensor, idle: torch.Tensor) -> None:
    """Raise ValueError for a row without a law, from the log-sum-exp [B, K] of all rows that were read."""
    lawless = (log_sum_exp.isnan() | (log_sum_exp == -math.inf)) & ~idle
    if bool(lawless.any()):
        row = tuple(lawless.nonzero()[0].tolist())
        raise ValueError(f"{name}[{row[0]}, {row[1]}]: got a row with a NaN or nothing but -inf")


def _fake(*arguments):
    return None


_op = register(f"glauber_step(Tensor(a!) tokens, Tensor logits, {UPDATE_SCHEMA}", _run, _fake)
_linear_op = register(
    f"linear_glauber_step(Tensor(a!) tokens, Tensor hidden, Tensor weight, Tensor? bias, {UPDATE_SCHEMA}",
    _linear_run,
    _fake,
)
