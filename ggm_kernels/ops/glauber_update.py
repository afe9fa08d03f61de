"""What a Glauber step is told beside its logits: checks, and its form as arguments of an op."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ggm_kernels import checks, randomness
from ggm_kernels.arguments.glauber_step import BY_PRODUCTS, Update, idle_rows
from ggm_kernels.backends import checks_values, requested
from ggm_kernels.noise import check_noise, drawn_by
from ggm_kernels.ops.library import refuse_shared_copies

# Arguments of both ops behind tokens and logits, in the order of `Given`.
UPDATE_SCHEMA = (
    "Tensor positions, SymInt seed, Tensor? seed_tensor, SymInt step, Tensor? step_tensor, "
    "float temperature, Tensor? temperature_tensor, SymInt? top_k, Tensor? top_k_tensor, "
    "float? top_p, Tensor? top_p_tensor, float? min_p, Tensor? min_p_tensor, "
    "Tensor? noise_rate, Tensor? noise_log_probs, Tensor? noise_table, int? noise_mask, bool normalize, "
    "Tensor? sample_ids, Tensor? frozen, bool top_p_first, float? softcap, Tensor? logit_shift, "
    "Tensor? mixture, Tensor(b!)? log_sum_exp, Tensor(c!)? log_prob, Tensor(d!)? keep_prob, "
    "Tensor(e!)? raw_log_prob, Tensor(f!)? entropy, Tensor(g!)? margin, Tensor(h!)? argmax, "
    "str backend) -> ()"
)

_ORDERS = ("k_p_min", "p_k_min")
_PAIRS = ("seed", "step", "temperature", "top_k", "top_p", "min_p")
_NUMBERS = (*checks.FLOATS, torch.float64)


def update_of(
    positions, seed, seed_tensor, step, step_tensor, temperature, temperature_tensor, top_k, top_k_tensor,
    top_p, top_p_tensor, min_p, min_p_tensor, *rest,
) -> Update:  # fmt: skip
    """`Update` of the arguments of `UPDATE_SCHEMA`, but for the backend."""
    return Update(
        positions,
        seed if seed_tensor is None else seed_tensor,
        step if step_tensor is None else step_tensor,
        temperature if temperature_tensor is None else temperature_tensor,
        top_k if top_k_tensor is None else top_k_tensor,
        top_p if top_p_tensor is None else top_p_tensor,
        min_p if min_p_tensor is None else min_p_tensor,
        *rest,
    )


def check_update(
    tokens, positions, rows, rows_name, vocab_size, *, seed, step, temperature, top_k, top_p, min_p,
    noise_rate, noise, normalize, sample_ids, frozen, filter_order, softcap, logit_shift, mixture, backend,
    **by_products,
) -> tuple:  # fmt: skip
    """Check what both ops share; return the arguments of `UPDATE_SCHEMA`."""
    checks.tensor("tokens", tokens, dtypes=checks.INTEGERS, dims=(2,))
    checks.writable("tokens", tokens)
    batch, length = tokens.shape
    if rows.shape[0] != batch:
        raise ValueError(f"{rows_name}: got shape {tuple(rows.shape)}; allowed: ({batch}, K, ..), as tokens")
    checks.same_device(rows_name, rows, "tokens", tokens)
    if not 1 <= vocab_size <= randomness.MAX_RACE_VOCAB:
        name = "weight" if rows_name == "hidden" else rows_name
        raise ValueError(f"{name}: got V = {vocab_size}; allowed: 1 to {randomness.MAX_RACE_VOCAB}")
    count = rows.shape[1]
    positions = _check_positions(positions, tokens, rows, rows_name)
    by_row = (noise_rate, mixture, logit_shift, sample_ids, frozen)
    given = _Given(tokens, count)
    numbers = (
        *given.seed(seed),
        *given.step(step),
        *given.number("temperature", temperature, low=0.0, high=math.inf),
        *given.top_k(top_k),
        *given.number("top_p", top_p, low=0.0, high=1.0, open_low=True),
        *given.number("min_p", min_p, low=0.0, high=1.0),
    )
    noise_rate = given.noise_rate(noise_rate)
    mixture = given.floats("mixture", mixture)
    logit_shift = given.floats("logit_shift", logit_shift)
    check_noise(noise, vocab_size)
    if not isinstance(normalize, bool):
        raise TypeError(f"normalize: got {type(normalize).__name__}; allowed: a bool")
    if filter_order not in _ORDERS:
        raise ValueError(f"filter_order: got {filter_order!r}; allowed: {', '.join(map(repr, _ORDERS))}")
    if softcap is not None:
        softcap = checks.softcap(softcap)
    sample_ids = randomness.check_sample_ids(sample_ids, tokens)
    frozen = checks.boolean_mask("frozen", frozen, tokens)
    log_probs = None if noise is None else noise.log_probs(tokens.device)
    table, mask = (None, None) if mixture is None else drawn_by(noise, tokens.device)
    for name, by_product in by_products.items():
        _check_by_product(name, by_product, tokens, count)
    if by_products["keep_prob"] is not None and noise_rate is None:
        raise ValueError("keep_prob: got a tensor without noise_rate; allowed: with noise_rate")
    copies = (
        ("temperature", temperature, numbers[5]), ("top_k", top_k, numbers[7]), ("top_p", top_p, numbers[9]),
        ("min_p", min_p, numbers[11]), ("noise_rate", by_row[0], noise_rate), ("mixture", by_row[1], mixture),
        ("logit_shift", by_row[2], logit_shift), ("sample_ids", by_row[3], sample_ids),
        ("frozen", by_row[4], frozen),
    )  # fmt: skip
    refuse_shared_copies({"tokens": tokens, **by_products}, copies)
    return (
        positions, *numbers, noise_rate, log_probs, table, mask, normalize, sample_ids, frozen,
        filter_order == "p_k_min", softcap, logit_shift, mixture,
        *(by_products[name] for name in BY_PRODUCTS), requested(backend),
    )  # fmt: skip


def _check_positions(positions, tokens, rows, rows_name) -> torch.Tensor:
    batch, length = tokens.shape
    count = rows.shape[1]
    if positions is None:
        if count != length:
            raise ValueError(
                f"{rows_name}: got shape {tuple(rows.shape)} with positions=None; "
                f"allowed: ({batch}, {length}, ..), a row for every position"
            )
        return torch.arange(length, device=tokens.device)
    checks.tensor("positions", positions, dtypes=checks.INTEGERS, shapes=[(batch, count), (count,)])
    checks.same_device("positions", positions, "tokens", tokens)
    return positions


class _Given:
    """Checks of what may be given once or row by row: as (number, tensor), one of which is meant."""

    def __init__(self, tokens: torch.Tensor, count: int) -> None:
        self._tokens = tokens
        self._shapes = [(tokens.shape[0],), (tokens.shape[0], count)]

    def _tensor(
        self, name: str, value: torch.Tensor, dtypes, dtype: torch.dtype, shapes=None
    ) -> torch.Tensor:
        checks.tensor(name, value, dtypes=dtypes, shapes=shapes or self._shapes)
        checks.same_device(name, value, "tokens", self._tokens)
        return _single(name, value.detach()) if dtype == torch.float32 else value.detach().to(dtype)

    def seed(self, seed) -> tuple[int, torch.Tensor | None]:
        if not isinstance(seed, torch.Tensor):
            return randomness.check_seed(seed), None
        return 0, self._coordinate("seed", seed)

    def step(self, step) -> tuple[int, torch.Tensor | None]:
        if not isinstance(step, torch.Tensor):
            return randomness.check_step(step, self._tokens)
        return 0, self._coordinate("step", step)

    def _coordinate(self, name: str, value: torch.Tensor) -> torch.Tensor:
        shapes = ((), self._shapes[0])
        randomness.check_coordinate(name, value, shapes, f"0-d or ({self._shapes[0][0]},)", self._tokens)
        return value

    def number(self, name: str, value, **limits) -> tuple[Any, torch.Tensor | None]:
        if isinstance(value, torch.Tensor):
            return 1.0, self._tensor(name, value, _NUMBERS, torch.float32)
        if value is None and name != "temperature":
            return None, None
        value = _kindly(name, checks.number, value, **limits)
        return (_TINY if name in _POSITIVE and 0.0 < value < _TINY else value), None

    def top_k(self, value) -> tuple[int | None, torch.Tensor | None]:
        if isinstance(value, torch.Tensor):
            return None, self._tensor("top_k", value, checks.INTEGERS, torch.int64)
        if value is None:
            return None, None
        return _kindly("top_k", checks.integer, value, low=1, high=2**63), None

    def floats(self, name: str, value) -> torch.Tensor | None:
        return None if value is None else self._tensor(name, value, _NUMBERS, torch.float32)

    def noise_rate(self, value) -> torch.Tensor | None:
        """[B] or [B, K], float32 or narrower."""
        if value is None:
            return None
        batch, count = self._shapes[1]
        if not isinstance(value, torch.Tensor):
            value = checks.number("noise_rate", value, low=0.0, high=1.0)
            return torch.full((1,), value, dtype=torch.float32, device=self._tokens.device).expand(batch)
        shapes = [(batch,), (batch, count), (batch, 1), ()]
        checks.tensor("noise_rate", value, dtypes=_NUMBERS, shapes=shapes)
        checks.same_device("noise_rate", value, "tokens", self._tokens)
        value = value.detach()
        if value.dtype == torch.float64:
            value = _single("noise_rate", value)
        if value.dim() == 0:
            return value.expand(batch)
        return value[:, 0] if value.dim() == 2 and value.shape[1] == 1 else value


_TINY, _LARGEST = 2.0**-126, torch.finfo(torch.float32).max
_POSITIVE = ("temperature", "top_p")  # for which a small number is not 0


def _single(name: str, value: torch.Tensor) -> torch.Tensor:
    """A tensor as float32; of float64, what is out of range stays so, and what is in range in it."""
    rounded = value.to(torch.float32)
    if value.dtype != torch.float64 or name == "logit_shift":
        return rounded
    if name in _POSITIVE:
        rounded = torch.where((value > 0) & (rounded < _TINY), _TINY, rounded)
    if name == "temperature":
        rounded = torch.where((value > _LARGEST) & value.isfinite(), _LARGEST, rounded)
    else:
        rounded = torch.where((value > 1) & (rounded <= 1), 1 + 2.0**-23, rounded)
    return torch.where((value < 0) & (rounded > -_TINY), -_TINY, rounded)


# What libraries give numbers for that leave nothing or everything.
_MEANT = {
    "top_k": "None, or V and more, for no limit",
    "top_p": "None or 1 for all tokens; a nucleus holds one at least",
    "temperature": "0 for the largest logit",
}


def _kindly(name: str, check: Callable, value, **limits):
    try:
        return check(name, value, **limits)
    except ValueError as error:
        raise ValueError(f"{error} ({_MEANT[name]})" if name in _MEANT else str(error)) from None


def check_logits(logits: torch.Tensor) -> None:
    """Check type, dtype and dimensions of logits [B, K, V]."""
    if isinstance(logits, torch.Tensor) and logits.dtype == torch.float64:
        allowed = ", ".join(str(dtype) for dtype in checks.FLOATS)
        raise TypeError(
            f"logits: got dtype torch.float64; allowed: {allowed}. float32 is enough: a draw is exact to "
            "events of probability 2**-33, as random words have 32 bits near 0; give logits.float()"
        )
    checks.tensor("logits", logits, dtypes=checks.FLOATS, dims=(3,))


def _check_by_product(name: str, value: torch.Tensor | None, tokens: torch.Tensor, count: int) -> None:
    if value is None:
        return
    dtype = torch.int64 if name == "argmax" else torch.float32
    checks.tensor(name, value, dtypes=(dtype,), shapes=[(tokens.shape[0], count)])
    checks.same_device(name, value, "tokens", tokens)
    if not value.is_contiguous():
        raise ValueError(f"{name}: got strides {value.stride()}; allowed: contiguous")
    if value.requires_grad:
        raise ValueError(f"{name}: got a tensor that requires a gradient; allowed: one that does not")


# Values inside tensors


def check_values(tokens: torch.Tensor, vocab_size: int, update: Update) -> None:
    """Raise for the first value that is out of range, where values are checked (synchronises)."""
    if not checks_values(tokens.device):
        return
    step = update.step if isinstance(update.step, torch.Tensor) else None
    randomness.check_coordinate_values(step, update.sample_ids)
    low = -1 if update.positions.dim() == 2 else 0
    checks.values_in_range("positions", update.positions, low, tokens.shape[1], IndexError)
    _check_distinct(update.positions)
    for name in ("noise_rate", "mixture", "min_p"):
        _check_range(name, getattr(update, name), 0.0, 1.0)
    largest, smallest = torch.finfo(torch.float32).max, 2.0**-149
    _check_range("temperature", update.temperature, 0.0, largest, "finite and 0 <= temperature")
    _check_range("top_p", update.top_p, smallest, 1.0, "0 < top_p <= 1")
    _check_range("top_k", update.top_k, 1, 2**63 - 1, "1 <= top_k")
    if update.reads_present:
        _check_present(tokens, vocab_size, update)


def _check_range(name: str, value, low: float, high: float, allowed: str | None = None) -> None:
    if isinstance(value, torch.Tensor):
        if allowed is not None:
            allowed = f"{allowed} ({_MEANT[name]})"
        checks.values_in_range(name, value, low, high, ValueError, closed=True, allowed=allowed)


def _check_present(tokens: torch.Tensor, vocab_size: int, update: Update) -> None:
    """Tokens that stand where they are read."""
    if tokens.shape[1] == 0:
        return
    positions = update.positions.long()
    positions = positions if positions.dim() == 2 else positions.expand(tokens.shape[0], -1)
    read = torch.zeros_like(tokens)
    read.scatter_add_(1, positions.clamp_min(0), (~idle_rows(tokens, update)).to(tokens.dtype))
    checks.values_in_range(
        "tokens", torch.where(read > 0, tokens, 0), 0, update.token_bound(vocab_size), IndexError
    )


def _check_distinct(positions: torch.Tensor) -> None:
    ordered, order = positions.sort(dim=-1, stable=True)
    twice = torch.zeros_like(positions, dtype=torch.bool)
    same = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    twice.scatter_(-1, order[..., 1:], same)
    if bool(twice.any()):
        first = tuple(twice.nonzero()[0].tolist())
        where = "positions" if positions.dim() == 1 else f"positions[{first[0]}]"
        raise IndexError(f"{where}: got position {int(positions[first])} twice; allowed: each once")
