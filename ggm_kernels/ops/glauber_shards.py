"""`glauber_race` and `glauber_settle`: the two halves of a step whose vocabulary is cut into shards."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import linear

from ggm_kernels import checks, randomness
from ggm_kernels.noise import NoiseLaw
from ggm_kernels.ops.glauber_update import check_update, check_values, update_of


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
        Token ids, int32 or int64, [B, L]; only read, to know the logits of present tokens.
    vocab_offset, vocab_size : int
        The shard holds the tokens from `vocab_offset` on, of `vocab_size`. Any cut will do. A group of 1024
        tokens that it goes through is summed in another order, so its mass is equal but for rounding; cuts at
        multiples of 1024 leave every mass as it is.
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
    if weight is not None:
        hidden = checks.factors(logits, weight, bias, dtypes=checks.FLOATS, dim=3)
        logits = linear(hidden.detach(), weight.detach(), None if bias is None else bias.detach())
    checks.tensor("logits", logits, dtypes=checks.FLOATS, dims=(3,))
    vocab_size = checks.integer("vocab_size", vocab_size, low=1, high=randomness.MAX_RACE_VOCAB + 1)
    size = logits.shape[2]
    vocab_offset = checks.integer("vocab_offset", vocab_offset, low=0, high=max(1, vocab_size - size + 1))
    if not 1 <= size <= vocab_size:
        raise ValueError(f"logits: got v = {size}; allowed: 1 to vocab_size = {vocab_size}")
    rows = _Rows(
        tokens, positions, logits, "logits", vocab_size, seed=seed, step=step, temperature=temperature,
        sample_ids=sample_ids, softcap=softcap, logit_shift=logit_shift,
    )  # fmt: skip
    return rows.race(logits, vocab_offset)


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
    from ggm_kernels.reference.glauber_shards import FIELDS

    _check_backend(backend)
    if not isinstance(states, torch.Tensor):
        states = torch.stack(list(states))
    checks.tensor("states", states, dtypes=(torch.float64,), dims=(4,))
    if states.shape[3] != FIELDS or states.shape[0] == 0:
        raise ValueError(
            f"states: got shape {tuple(states.shape)}; allowed: (P, B, K, {FIELDS}), P at least 1"
        )
    vocab_size = checks.integer("vocab_size", vocab_size, low=1, high=randomness.MAX_RACE_VOCAB + 1)
    rows = _Rows(
        tokens, positions, states[0], "states", vocab_size, seed=seed, step=step, temperature=temperature,
        sample_ids=sample_ids, noise_rate=noise_rate, noise=noise, normalize=normalize, frozen=frozen,
        log_sum_exp=log_sum_exp, log_prob=log_prob, keep_prob=keep_prob, raw_log_prob=raw_log_prob,
        entropy=entropy, margin=margin, argmax=argmax,
    )  # fmt: skip
    rows.settle(states)
    return tokens


_DEFAULTS = dict.fromkeys(
    (
        "top_k", "top_p", "min_p", "noise_rate", "noise", "sample_ids", "frozen", "softcap", "logit_shift",
        "mixture", "log_sum_exp", "log_prob", "keep_prob", "raw_log_prob", "entropy", "margin", "argmax",
        "backend",
    )
)  # fmt: skip


def _check_backend(backend: str | None) -> None:
    if backend not in (None, "reference"):
        raise NotImplementedError(
            f"backend: got {backend!r}; allowed: 'reference' or None, which take any device"
        )


class _Rows:
    """The rows of a step on checked arguments, as the reference holds them."""

    def __init__(self, tokens, positions, rows, rows_name, vocab_size, **given) -> None:
        from ggm_kernels.reference.glauber_step import _Rows as ReferenceRows

        arguments = {**_DEFAULTS, "normalize": False, "filter_order": "k_p_min", **given}
        update = update_of(*check_update(tokens, positions, rows, rows_name, vocab_size, **arguments)[:-1])
        check_values(tokens, vocab_size, update)
        self.tokens, self.update, self.vocab_size = tokens, update, vocab_size
        self.shape = rows.shape[:2]
        self.rows = ReferenceRows(tokens, update)
        self.every = slice(0, self.rows.positions.numel())

    @property
    def temperature(self) -> torch.Tensor:
        return self.rows._value("temperature", self.every, 1.0)

    @property
    def present(self) -> torch.Tensor:
        return self.tokens[self.rows.batch_index, self.rows.positions].long()

    def race(self, logits: torch.Tensor, vocab_offset: int) -> torch.Tensor:
        from ggm_kernels.reference.glauber_shards import FIELDS, race_shard

        states = logits.new_empty(*self.shape, FIELDS, dtype=torch.float64)
        flat, present = logits.detach().flatten(0, 1), self.present
        for part in self.rows.chunks(max(self.vocab_size, 1)):
            g = self.rows._edited(part, flat[part].to(torch.float32), present[part] - vocab_offset)
            states.view(-1, FIELDS)[part] = race_shard(
                g,
                present[part],
                self.rows._coordinates(part),
                self.temperature[part],
                vocab_offset,
                self.vocab_size,
            )
        return states

    def settle(self, states: torch.Tensor) -> None:
        from ggm_kernels.reference.glauber_shards import settle_shards
        from ggm_kernels.reference.glauber_step import _log_odds, keep_decision
        from ggm_kernels.reference.philox import keep_words

        rows, update, every = self.rows, self.update, self.every
        coordinates = rows._coordinates(every)
        merged, winner, logit = settle_shards(
            states.flatten(1, 2), coordinates, self.temperature, self.vocab_size
        )
        log_sum_exp = merged.top + merged.raw_mass.log()
        knows = (merged.has_nan == 0) & (merged.top > -math.inf) & ~rows.idle
        changes = knows
        if update.noise_rate is not None:
            h = merged.present - log_sum_exp if update.normalize else merged.present
            h = torch.where(merged.has_nan > 0, math.nan, h).to(torch.float32)
            log_pi = rows._log_pi(self.present, states.new_empty(0, self.vocab_size))
            f = _log_odds(h, rows._value("noise_rate", every, 0.0), log_pi)
            changes = changes & ~keep_decision(f, keep_words(*coordinates)[0])
            rows._note("keep_prob", every, torch.sigmoid(f), ~rows.idle)
        self.tokens.index_put_(
            (rows.batch_index[changes], rows.positions[changes]), winner[changes].to(self.tokens.dtype)
        )
        temperature = self.temperature
        divisor = torch.where(temperature == 0, 1.0, temperature).double()
        z = torch.where(logit == merged.top, 0.0, (logit - merged.top) / divisor)
        log_prob = torch.where(temperature == 0, 0.0, z - merged.tempered_mass.log())
        entropy = merged.tempered_mass.log() - merged.moment / merged.tempered_mass
        margin = torch.where(merged.second == merged.top, 0.0, merged.top - merged.second)
        for name, values, known in (
            ("log_prob", log_prob, changes),
            ("raw_log_prob", logit - log_sum_exp, changes),
            ("log_sum_exp", log_sum_exp, knows),
            ("entropy", torch.where(temperature == 0, 0.0, entropy.clamp_min(0)), knows),
            ("margin", margin, knows),
        ):
            rows._note(name, every, values.to(torch.float32), known)
        rows._note("argmax", every, merged.argmax.nan_to_num().long(), knows, unknown=-1)
