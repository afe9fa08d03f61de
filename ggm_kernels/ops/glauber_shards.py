"""`glauber_race` and `glauber_settle`: the two halves of a step whose vocabulary is cut into shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ggm_kernels import checks, randomness
from ggm_kernels.arguments.glauber_step import BY_PRODUCTS, Update
from ggm_kernels.backends import check_name, kernel, requested
from ggm_kernels.noise import NoiseLaw
from ggm_kernels.ops.glauber_step import checked_kernel, checked_run
from ggm_kernels.ops.glauber_update import UPDATE_SCHEMA, check_update, check_values, update_of
from ggm_kernels.ops.library import register


def glauber_race(
    logits: torch.Tensor,
    weight: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    *,
    tokens: torch.Tensor,
    vocab_offset: int,
    vocab_size: int,
    bias: torch.Tensor | None = None,
    seed: int | torch.Tensor,
    step: int | torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    sample_ids: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_shift: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Race one shard of the vocabulary: the first half of `glauber_step`, for tensor parallelism.

    Each of P processes races its own tokens; the states of all, gathered, are settled by every one of them
    alike. Together the halves draw what `glauber_step` draws from the logits of all shards.

    Parameters
    ----------
    logits : torch.Tensor
        float32, bfloat16 or float16: the shard's logits [B, K, v], or with `weight` hidden states [B, K, d].
    weight : torch.Tensor, optional
        The shard's rows of the output embedding, [v, d].
    positions : torch.Tensor or None
        As in `glauber_step`.
    tokens : torch.Tensor
        Token ids, int32 or int64, [B, L]; only read, to know the logits of present tokens. One without a
        logit in the shard, any number, is looked for in vain.
    vocab_offset, vocab_size : int
        The shard holds the tokens from `vocab_offset` on, of `vocab_size`. Any cut will do, and v may be 0. A
        group of 1024 tokens that it goes through is summed in another order, so its mass is equal but for
        rounding; cuts at multiples of 1024 leave every mass as it is.
    bias : torch.Tensor, optional
        The shard's part of the bias, [v].
    seed, step, temperature, sample_ids, softcap, logit_shift
        As in `glauber_step`, and the same in every shard and in `glauber_settle`. There are no filters: what
        they leave out depends on all shards.
    backend : str, optional
        "reference" serves every device; None, too, takes it.

    Returns
    -------
    torch.Tensor
        State, float64 [B, K, F], of the same shape in every shard: gather it as it is.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `glauber_step`.
    """
    _check_backend(backend)
    if weight is None:
        checks.tensor("logits", logits, dtypes=checks.FLOATS, dims=(3,))
        if bias is not None:
            raise ValueError("bias: got a tensor without weight; allowed: with weight")
        name, size = "logits", logits.shape[2]
    else:
        logits = checks.factors(logits, weight, bias, dtypes=checks.FLOATS, dim=3)
        name, size = "weight", weight.shape[0]
    vocab_size = checks.integer("vocab_size", vocab_size, low=1, high=randomness.MAX_RACE_VOCAB + 1)
    vocab_offset = checks.integer("vocab_offset", vocab_offset, low=0, high=max(1, vocab_size - size + 1))
    if not 0 <= size <= vocab_size:
        raise ValueError(f"{name}: got v = {size}; allowed: 0 to vocab_size = {vocab_size}")
    update = _checked(
        tokens, positions, logits, "logits", vocab_size, seed=seed, step=step, temperature=temperature,
        sample_ids=sample_ids, softcap=softcap, logit_shift=logit_shift,
    )  # fmt: skip
    of_race = (vocab_offset, vocab_size, *(update[place] for place in _RACE_PLACES), "reference")
    if weight is None:
        return _race_op(tokens, logits.detach(), *of_race)
    bias = None if bias is None else bias.detach()
    return _linear_race_op(tokens, logits.detach(), weight.detach(), bias, *of_race)


def glauber_settle(
    tokens: torch.Tensor,
    states: torch.Tensor | Sequence[torch.Tensor],
    positions: torch.Tensor | None = None,
    *,
    vocab_size: int,
    seed: int | torch.Tensor,
    step: int | torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    noise_rate: float | torch.Tensor | None = None,
    noise: NoiseLaw | None = None,
    normalize: bool = False,
    sample_ids: torch.Tensor | None = None,
    frozen: torch.Tensor | None = None,
    log_sum_exp: torch.Tensor | None = None,
    log_prob: torch.Tensor | None = None,
    keep_prob: torch.Tensor | None = None,
    raw_log_prob: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
    margin: torch.Tensor | None = None,
    argmax: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Settle a step from the states of all shards: the second half of `glauber_step`. In place.

    Parameters
    ----------
    tokens : torch.Tensor
        Token ids, int32 or int64, [B, L], as `glauber_race` read them; written in place.
    states : torch.Tensor or sequence of torch.Tensor
        What `glauber_race` returned in each shard, [P, B, K, F] or P of [B, K, F], in any order.
    positions, seed, step, temperature, sample_ids
        As in `glauber_race`.
    vocab_size : int
        V of all shards together.
    noise_rate, noise, normalize, frozen
        As in `glauber_step`.
    log_sum_exp, log_prob, keep_prob, raw_log_prob, entropy, margin, argmax
        As in `glauber_step`.
    backend : str, optional
        As in `glauber_race`.

    Returns
    -------
    torch.Tensor
        `tokens` itself.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `glauber_step`.
    """
    _check_backend(backend)
    states = _stacked(states)
    vocab_size = checks.integer("vocab_size", vocab_size, low=1, high=randomness.MAX_RACE_VOCAB + 1)
    update = _checked(
        tokens, positions, states[0], "states", vocab_size, seed=seed, step=step, temperature=temperature,
        sample_ids=sample_ids, noise_rate=noise_rate, noise=noise, normalize=normalize, frozen=frozen,
        log_sum_exp=log_sum_exp, log_prob=log_prob, keep_prob=keep_prob, raw_log_prob=raw_log_prob,
        entropy=entropy, margin=margin, argmax=argmax,
    )  # fmt: skip
    _settle_op(tokens, states.detach(), vocab_size, *update)
    return tokens


def _check_backend(backend: str | None) -> None:
    name = requested(backend)
    if backend is None or name == "reference":
        return
    check_name(name)
    raise NotImplementedError(
        f"backend: got {backend!r}; allowed: 'reference' or None, which take any device"
    )


def _stacked(states: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """States of all shards, [P, B, K, F]."""
    from ggm_kernels.reference.glauber_shards import FIELDS

    allowed = f"(P, B, K, {FIELDS}) or P of (B, K, {FIELDS}), as glauber_race returned them, P at least 1"
    if not isinstance(states, torch.Tensor):
        if not isinstance(states, Iterable):
            raise TypeError(f"states: got {type(states).__name__}; allowed: {allowed}")
        given = list(states)
        if not given:
            raise ValueError(f"states: got an empty {type(states).__name__}; allowed: {allowed}")
        for shard, state in enumerate(given):
            _check_state(f"states[{shard}]", state, given[0])
        states = torch.stack(given)
    checks.tensor("states", states, dtypes=(torch.float64,), dims=(4,))
    if states.shape[3] != FIELDS or states.shape[0] == 0:
        raise ValueError(f"states: got shape {tuple(states.shape)}; allowed: {allowed}")
    return states


def _check_state(name: str, state: torch.Tensor, first: torch.Tensor) -> None:
    checks.tensor(name, state, dtypes=(torch.float64,), dims=(3,))
    checks.tensor(name, state, dtypes=(torch.float64,), shapes=[first.shape])
    checks.same_device(name, state, "states[0]", first)


# What a step may be told and neither half is, or one of them alone.
_DEFAULTS: dict[str, object] = dict.fromkeys(
    (
        "top_k", "top_p", "min_p", "noise_rate", "noise", "sample_ids", "frozen", "softcap", "logit_shift",
        "mixture", *BY_PRODUCTS,
    )
) | {"normalize": False, "filter_order": "k_p_min", "backend": "reference"}  # fmt: skip


def _checked(tokens, positions, rows, rows_name, vocab_size, **given) -> tuple:
    """Arguments of `UPDATE_SCHEMA`."""
    return check_update(tokens, positions, rows, rows_name, vocab_size, **{**_DEFAULTS, **given})


# The race


# Of `UPDATE_SCHEMA` what the race is told.
_OF_RACE = (
    "positions", "seed", "seed_tensor", "step", "step_tensor", "temperature", "temperature_tensor",
    "sample_ids", "softcap", "logit_shift",
)  # fmt: skip
_OF_UPDATE = UPDATE_SCHEMA.partition(") ->")[0].split(", ")
_NAMES = [argument.rsplit(" ", 1)[1] for argument in _OF_UPDATE]
_RACE_PLACES = [_NAMES.index(name) for name in _OF_RACE]
_RACE_SCHEMA = ", ".join(
    ("SymInt vocab_offset, SymInt vocab_size", *(_OF_UPDATE[place] for place in _RACE_PLACES), "str backend")
)


def _race_update(of_race: Sequence) -> Update:
    arguments = [None] * (len(_NAMES) - 1)
    for place, value in zip(_RACE_PLACES, of_race, strict=True):
        arguments[place] = value
    return update_of(*arguments)._replace(normalize=False, top_p_first=False)


def _run_race(tokens, logits, *of_race):
    return _race("glauber_race", tokens, (logits,), *of_race)


def _run_linear_race(tokens, hidden, weight, bias, *of_race):
    return _race("linear_glauber_race", tokens, (hidden, weight, bias), *of_race)


def _race(op, tokens, factors, vocab_offset, vocab_size, *of_race_and_backend):
    *of_race, backend = of_race_and_backend
    update = _race_update(of_race)
    _, run = kernel(op, backend, tokens.device)
    check_values(tokens, vocab_size, update._replace(logit_shift=None))  # any token may stand there
    return run(tokens, *factors, vocab_offset, vocab_size, update)


def _fake_race(tokens, rows, *_):
    from ggm_kernels.reference.glauber_shards import FIELDS

    return rows.new_empty(*rows.shape[:2], FIELDS, dtype=torch.float64)


_race_op = register(
    f"glauber_race(Tensor tokens, Tensor logits, {_RACE_SCHEMA}) -> Tensor", _run_race, _fake_race
)
_linear_race_op = register(
    "linear_glauber_race(Tensor tokens, Tensor hidden, Tensor weight, Tensor? bias, "
    f"{_RACE_SCHEMA}) -> Tensor",
    _run_linear_race,
    _fake_race,
)


# The settlement


def _run_settle(tokens, states, vocab_size, *arguments_and_backend):
    settle = checked_kernel("glauber_settle", arguments_and_backend[-1], tokens, vocab_size)

    def run(tokens, states, update):
        settle(tokens, states, vocab_size, update)

    checked_run("states", run, tokens, (states,), update_of(*arguments_and_backend[:-1]))


def _fake_settle(*arguments):
    return None


_settle_op = register(
    f"glauber_settle(Tensor(a!) tokens, Tensor states, SymInt vocab_size, {UPDATE_SCHEMA}",
    _run_settle,
    _fake_settle,
)
