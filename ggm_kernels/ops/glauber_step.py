"""`glauber_step` and `linear_glauber_step`: schema, checks, fake, backends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ggm_kernels import checks, randomness
from ggm_kernels.backends import checks_rows, checks_values, kernel, requested
from ggm_kernels.noise import NoiseLaw, check_noise
from ggm_kernels.ops.library import register, writing

_UPDATE_SCHEMA = (
    "Tensor positions, SymInt seed, SymInt step, Tensor? step_tensor, float temperature, SymInt? top_k, "
    "float? top_p, float? min_p, Tensor? noise_rate, Tensor? noise_log_probs, bool normalize, "
    "Tensor? sample_ids, Tensor? frozen, Tensor(b!)? log_sum_exp, Tensor(c!)? log_prob, "
    "Tensor(d!)? keep_prob, str backend) -> ()"
)

_BY_PRODUCTS = ("log_sum_exp", "log_prob", "keep_prob")
_READ = ("positions", "step", "noise_rate", "sample_ids", "frozen")  # besides what the logits come from


class Update(NamedTuple):
    """Which rows a step updates and how: checked arguments, as backends get them.

    A tuple, and no frozen dataclass, which takes 4 us to make: a tenth of a small call.
    `step` is an int or a 0-d int64 tensor, `noise_log_probs` the law of the noise [V] or None (uniform);
    the rest as in `glauber_step`.
    """

    positions: torch.Tensor
    seed: int
    step: int | torch.Tensor
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    noise_rate: torch.Tensor | None
    noise_log_probs: torch.Tensor | None
    normalize: bool
    sample_ids: torch.Tensor | None
    frozen: torch.Tensor | None
    log_sum_exp: torch.Tensor | None
    log_prob: torch.Tensor | None
    keep_prob: torch.Tensor | None


def glauber_step(
    tokens: torch.Tensor,
    logits: torch.Tensor,
    positions: torch.Tensor,
    *,
    seed: int,
    step: int | torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    noise_rate: torch.Tensor | None = None,
    noise: NoiseLaw | None = None,
    normalize: bool = False,
    sample_ids: torch.Tensor | None = None,
    frozen: torch.Tensor | None = None,
    log_sum_exp: torch.Tensor | None = None,
    log_prob: torch.Tensor | None = None,
    keep_prob: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Resample tokens at given positions from their logits, in place: one reverse step of Glauber dynamics.

    Heat bath (no `noise_rate`) equals, in law,
    ``tokens[b, positions[b, k]] = torch.multinomial(logits[b, k].softmax(-1), 1)``. With `noise_rate` eps a
    token is first kept with probability ``sigmoid(g + log((1 - eps) / eps) - log pi(token))``, g its logit.

    Parameters
    ----------
    tokens : torch.Tensor
        Token ids in [0, V), int32 or int64, shape [B, L]; written in place, so not an expanded tensor.
    logits : torch.Tensor
        float32, bfloat16 or float16, shape [B, K, V], V at most 2**22. A row that holds a NaN, or nothing
        but -inf, leaves its token as it was (raises under GGM_KERNELS_CHECK=1).
    positions : torch.Tensor
        Positions to update, int32 or int64, shape [B, K] or [K], distinct within a sequence.
    seed : int
        Key of the noise, 0 to 2**64 - 1.
    step : int or torch.Tensor
        Coordinate of the noise, 0 to 2**32 - 1: give every step another one. A 0-d int64 tensor may change
        under a CUDA graph.
    temperature : float
        Logits are divided by it; 0 takes the largest logit (the first of equals).
    top_k, top_p, min_p : optional
        Applied in this order after the temperature, each to what the ones before left, as Hugging Face's
        logits processors do. Equal logits share one fate: all stay or all go.
    noise_rate : torch.Tensor, optional
        eps in [0, 1], float [B] or [B, K]: keep-or-replace instead of heat bath.
    noise : NoiseLaw, optional
        Law pi of the noise in the keep decision; None is uniform.
    normalize : bool
        Whether the keep decision subtracts the row's log-sum-exp from the logit, for logits that are not
        log-probabilities.
    sample_ids : torch.Tensor, optional
        Coordinate of each sequence, integer [B], values in [0, 2**40). Default 0, 1, .., B - 1.
    frozen : torch.Tensor, optional
        bool [B, L]: positions that never change.
    log_sum_exp : torch.Tensor, optional
        Filled with the log-sum-exp of every row of logits (raw: no temperature, no filter), float32 [B, K].
        0 where the logits are log-probabilities: the calibration of a GGM. NaN where the row is frozen.
    log_prob : torch.Tensor, optional
        Filled with the log-probability of the token drawn under the law that it was drawn from (temperature
        and filters included), float32 [B, K]; NaN where the token was kept, is frozen or has no law.
    keep_prob : torch.Tensor, optional
        Filled with the probability of keeping the present token, float32 [B, K]; needs `noise_rate`. 1 where
        the token cannot be noise (eps or pi is 0), NaN where the row is frozen or has no law.
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
        For a token outside [0, V), a position outside [0, L) or twice in one sequence; nothing is written.
        On CPU, and on GPU if GGM_KERNELS_CHECK=1.

    Notes
    -----
    The draw is an exponential race on float32 scores: argmax of logit / temperature - log E, where
    E = -log1p(-u) and u is one of 2**32 uniforms keyed by (seed, step, sample id, position, token). Events
    down to probability 2**-33 occur at their rate. Source: reverse process of arXiv 2405.17035;
    keep-or-replace is our derivation (docs/mathematics.md).
    """
    checks.tensor("logits", logits, dtypes=checks.FLOATS, dims=(3,))
    update = _check_update(
        tokens, positions, logits, "logits", logits.shape[2], seed, step, temperature, top_k, top_p, min_p,
        noise_rate, noise, normalize, sample_ids, frozen, log_sum_exp, log_prob, keep_prob, backend,
    )  # fmt: skip
    _op(tokens, logits.detach(), *update)
    return tokens


def linear_glauber_step(
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    positions: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    seed: int,
    step: int | torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    noise_rate: torch.Tensor | None = None,
    noise: NoiseLaw | None = None,
    normalize: bool = False,
    sample_ids: torch.Tensor | None = None,
    frozen: torch.Tensor | None = None,
    log_sum_exp: torch.Tensor | None = None,
    log_prob: torch.Tensor | None = None,
    keep_prob: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """`glauber_step` on the logits ``hidden @ weight.T + bias``, which never exist as a whole.

    Parameters
    ----------
    tokens : torch.Tensor
        Token ids in [0, V), int32 or int64, shape [B, L]; written in place.
    hidden : torch.Tensor
        float32, bfloat16 or float16, shape [B, K, d].
    weight : torch.Tensor
        Output embedding, dtype of `hidden`, shape [V, d]. Under autocast `hidden` may be of another dtype
        and is cast, so that no copy of the weight is made.
    positions : torch.Tensor
        Positions to update, int32 or int64, shape [B, K] or [K], distinct within a sequence.
    bias : torch.Tensor, optional
        dtype of `weight`, shape [V].
    seed, step, temperature, top_k, top_p, min_p, noise_rate, noise, normalize, sample_ids, frozen
        As in `glauber_step`.
    log_sum_exp, log_prob, keep_prob, backend
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
    update = _check_update(
        tokens, positions, hidden, "hidden", weight.shape[0], seed, step, temperature, top_k, top_p, min_p,
        noise_rate, noise, normalize, sample_ids, frozen, log_sum_exp, log_prob, keep_prob, backend,
    )  # fmt: skip
    _linear_op(tokens, hidden.detach(), weight.detach(), None if bias is None else bias.detach(), *update)
    return tokens


def _check_update(
    tokens, positions, rows, rows_name, vocab_size, seed, step, temperature, top_k, top_p, min_p,
    noise_rate, noise, normalize, sample_ids, frozen, log_sum_exp, log_prob, keep_prob, backend,
) -> tuple:  # fmt: skip
    """Check what both ops share; return the arguments of `_UPDATE_SCHEMA`."""
    checks.tensor("tokens", tokens, dtypes=checks.INTEGERS, dims=(2,))
    checks.writable("tokens", tokens)
    batch = tokens.shape[0]
    if rows.shape[0] != batch:
        raise ValueError(f"{rows_name}: got shape {tuple(rows.shape)}; allowed: ({batch}, K, ..), as tokens")
    checks.same_device(rows_name, rows, "tokens", tokens)
    if not 1 <= vocab_size <= randomness.MAX_RACE_VOCAB:
        raise ValueError(f"{rows_name}: got V = {vocab_size}; allowed: 1 to {randomness.MAX_RACE_VOCAB}")
    count = rows.shape[1]
    checks.tensor("positions", positions, dtypes=checks.INTEGERS, shapes=[(batch, count), (count,)])
    checks.same_device("positions", positions, "tokens", tokens)
    seed = randomness.check_seed(seed)
    step, step_tensor = randomness.check_step(step)
    temperature = checks.number("temperature", temperature, low=0.0, high=math.inf)
    if top_k is not None:
        top_k = checks.integer("top_k", top_k, low=1, high=2**63)
    if top_p is not None:
        top_p = checks.number("top_p", top_p, low=0.0, high=1.0, open_low=True)
    if min_p is not None:
        min_p = checks.number("min_p", min_p, low=0.0, high=1.0)
    if noise_rate is not None:
        checks.tensor("noise_rate", noise_rate, dtypes=checks.FLOATS, shapes=[(batch,), (batch, count)])
        checks.same_device("noise_rate", noise_rate, "tokens", tokens)
        noise_rate = noise_rate.detach()
    check_noise(noise, vocab_size)
    if not isinstance(normalize, bool):
        raise TypeError(f"normalize: got {type(normalize).__name__}; allowed: a bool")
    sample_ids = randomness.check_sample_ids(sample_ids, tokens)
    frozen = checks.boolean_mask("frozen", frozen, tokens)
    noise_log_probs = None if noise is None else noise.log_probs(tokens.device)
    by_products = (log_sum_exp, log_prob, keep_prob)
    for name, by_product in zip(_BY_PRODUCTS, by_products, strict=True):
        _check_by_product(name, by_product, tokens, count)
    if keep_prob is not None and noise_rate is None:
        raise ValueError("keep_prob: got a tensor without noise_rate; allowed: with noise_rate")
    return (
        positions, seed, step, step_tensor, temperature, top_k, top_p, min_p, noise_rate, noise_log_probs,
        normalize, sample_ids, frozen, *by_products, requested(backend),
    )  # fmt: skip


def _check_by_product(name: str, value: torch.Tensor | None, tokens: torch.Tensor, count: int) -> None:
    if value is None:
        return
    checks.tensor(name, value, dtypes=(torch.float32,), shapes=[(tokens.shape[0], count)])
    checks.same_device(name, value, "tokens", tokens)
    if not value.is_contiguous():
        raise ValueError(f"{name}: got strides {value.stride()}; allowed: contiguous")
    if value.requires_grad:
        raise ValueError(f"{name}: got a tensor that requires a gradient; allowed: one that does not")


def _check_values(tokens: torch.Tensor, vocab_size: int, update: Update) -> None:
    if not checks_values(tokens.device):
        return
    step = update.step if isinstance(update.step, torch.Tensor) else None
    randomness.check_coordinate_values(step, update.sample_ids)
    checks.values_in_range("tokens", tokens, 0, vocab_size, IndexError)
    checks.values_in_range("positions", update.positions, 0, tokens.shape[1], IndexError)
    _check_distinct(update.positions)
    if update.noise_rate is not None:
        checks.values_in_range("noise_rate", update.noise_rate, 0.0, 1.0, ValueError, closed=True)


def _check_distinct(positions: torch.Tensor) -> None:
    ordered, order = positions.sort(dim=-1, stable=True)
    twice = torch.zeros_like(positions, dtype=torch.bool)
    twice.scatter_(-1, order[..., 1:], ordered[..., 1:] == ordered[..., :-1])
    if bool(twice.any()):
        first = tuple(twice.nonzero()[0].tolist())
        where = "positions" if positions.dim() == 1 else f"positions[{first[0]}]"
        raise IndexError(f"{where}: got position {int(positions[first])} twice; allowed: each once")


def _check_rows(name: str, log_sum_exp: torch.Tensor) -> None:
    """Raise ValueError for a row without a law, from the log-sum-exp [B, K] of all rows."""
    lawless = log_sum_exp.isnan() | (log_sum_exp == -math.inf)
    if bool(lawless.any()):
        row = tuple(lawless.nonzero()[0].tolist())
        raise ValueError(f"{name}[{row[0]}, {row[1]}]: got a row with a NaN or nothing but -inf")


def _update(positions, seed, step, step_tensor, *rest) -> Update:
    """`Update` of the arguments of `_UPDATE_SCHEMA`, but for the backend."""
    return Update(positions, seed, step if step_tensor is None else step_tensor, *rest)


def _run(tokens, logits, *arguments_and_backend):
    run = _kernel("glauber_step", arguments_and_backend[-1], tokens, logits.shape[2])
    _checked_run("logits", run, tokens, (logits,), _update(*arguments_and_backend[:-1]))


def _linear_run(tokens, hidden, weight, bias, *arguments_and_backend):
    run = _kernel("linear_glauber_step", arguments_and_backend[-1], tokens, weight.shape[0])
    _checked_run("hidden", run, tokens, (hidden, weight, bias), _update(*arguments_and_backend[:-1]))


def _kernel(op: str, backend: str, tokens: torch.Tensor, vocab_size: int) -> Callable:
    """Kernel of the op that serves `backend`, with the checks of values that it leaves to us."""
    name, run = kernel(op, backend, tokens.device)

    def checked(tokens, *rest):
        update = rest[-1]
        if name != "cpu":
            _check_values(tokens, vocab_size, update)
        if run(tokens, *rest) is False:  # the cpu kernel met a bad value and wrote nothing: name it
            _check_values(tokens, vocab_size, update)
            raise AssertionError("the cpu kernel refused values that the checks accept")

    return checked


def _checked_run(rows_name: str, run: Callable, tokens: torch.Tensor, rows: tuple, update: Update) -> None:
    """Run; under GGM_KERNELS_CHECK=1 raise for a row without a law, with nothing written."""
    by_products = {name: value for name in _BY_PRODUCTS if (value := getattr(update, name)) is not None}
    written = {"tokens": tokens, **by_products}
    read = dict(zip((rows_name, "weight", "bias"), rows, strict=False))
    read |= {name: value for name in _READ if isinstance(value := getattr(update, name), torch.Tensor)}
    with writing(written, read):
        if checks_rows():
            _run_on_copies(rows_name, run, tokens, rows, update, by_products)
        else:
            run(tokens, *rows, update)


def _run_on_copies(
    rows_name: str, run: Callable, tokens: torch.Tensor, rows: tuple, update: Update, by_products: dict
) -> None:
    result = tokens.clone()
    results: dict[str, Any] = {name: torch.empty_like(value) for name, value in by_products.items()}
    results.setdefault("log_sum_exp", tokens.new_empty(rows[0].shape[:2], dtype=torch.float32))
    run(result, *rows, update._replace(**results))
    _check_rows(rows_name, results["log_sum_exp"])
    tokens.copy_(result)
    for name, value in by_products.items():
        value.copy_(results[name])


def _fake(*arguments):
    return None


_op = register(f"glauber_step(Tensor(a!) tokens, Tensor logits, {_UPDATE_SCHEMA}", _run, _fake)
_linear_op = register(
    f"linear_glauber_step(Tensor(a!) tokens, Tensor hidden, Tensor weight, Tensor? bias, {_UPDATE_SCHEMA}",
    _linear_run,
    _fake,
)
