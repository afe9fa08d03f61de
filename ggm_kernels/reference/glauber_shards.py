"""Reference of `glauber_race` and `glauber_settle`: a step whose vocabulary is cut into shards.

A shard races its whole groups and says which leads. A group that the shard's border cuts is raced in parts:
each says its mass and its leading token, and the settlement adds up and compares the parts of one group.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn.functional import linear

from ggm_kernels.arguments.glauber_step import Update
from ggm_kernels.randomness import RACE_GROUP
from ggm_kernels.reference import philox
from ggm_kernels.reference.glauber_step import Rows, keep_decision, log_odds
from ggm_kernels.reference.precision import without_autocast


class Contender(NamedTuple):
    """A group of a shard, or its part of one, by row: float64 [R] each."""

    group: torch.Tensor  # -1 where there is none
    top: torch.Tensor  # largest logit
    mass: torch.Tensor  # sum of exp of the tempered logits relative to the largest
    score: torch.Tensor  # of the leading token relative to the largest logit
    token: torch.Tensor
    logit: torch.Tensor  # of the leading token


class Shard(NamedTuple):
    """What a shard knows of rows: float64 [R] each. Masses and moment are relative to its largest logit."""

    top: torch.Tensor
    second: torch.Tensor
    argmax: torch.Tensor
    raw_mass: torch.Tensor
    tempered_mass: torch.Tensor
    moment: torch.Tensor
    present: torch.Tensor
    has_nan: torch.Tensor


CONTENDERS = 3  # the leading whole group, the cut groups at the two ends
FIELDS = len(Shard._fields) + CONTENDERS * len(Contender._fields)


def glauber_race(
    tokens: torch.Tensor, logits: torch.Tensor, vocab_offset: int, vocab_size: int, update: Update
) -> torch.Tensor:
    """State [B, K, FIELDS] of logits [B, K, v], those of the tokens from `vocab_offset` on."""
    flat = logits.flatten(0, 1)
    return _race(tokens, lambda part: flat[part], vocab_offset, vocab_size, update)


@without_autocast
def linear_glauber_race(
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    vocab_offset: int,
    vocab_size: int,
    update: Update,
) -> torch.Tensor:
    """`glauber_race` on hidden [B, K, d] @ weight [v, d].T + bias, a block of rows at a time."""
    flat = hidden.flatten(0, 1)
    return _race(tokens, lambda part: linear(flat[part], weight, bias), vocab_offset, vocab_size, update)


def _race(tokens, logits_of, vocab_offset: int, vocab_size: int, update: Update) -> torch.Tensor:
    rows = Rows(tokens, update)
    states = tokens.new_empty(*rows.shape, FIELDS, dtype=torch.float64)
    for part in rows.chunks(vocab_size):
        present = rows.present(part)
        g = rows.edited(part, logits_of(part).to(torch.float32), present - vocab_offset)
        coordinates, temperature = rows.coordinates(part), rows.value("temperature", part, 1.0)
        states.view(-1, FIELDS)[part] = race_shard(
            g, present, coordinates, temperature, vocab_offset, vocab_size
        )
    return states


def glauber_settle(tokens: torch.Tensor, states: torch.Tensor, vocab_size: int, update: Update) -> int | None:
    """Update tokens from states [P, B, K, FIELDS] of all shards; counts lawless rows on the CPU."""
    rows = Rows(tokens, update)
    every = slice(0, rows.positions.numel())
    coordinates, temperature = rows.coordinates(every), rows.value("temperature", every, 1.0)
    merged, winner, logit = settle_shards(states.flatten(1, 2), coordinates, temperature, vocab_size)
    log_sum_exp = merged.top + merged.raw_mass.log()
    has_law = (merged.has_nan == 0) & (merged.top > -math.inf)
    knows = has_law & ~rows.idle
    changes = knows
    if update.noise_rate is not None:
        h = (merged.present - log_sum_exp if update.normalize else merged.present).to(torch.float32)
        log_pi = rows.log_pi(rows.present(every), vocab_size)
        f = log_odds(h, rows.value("noise_rate", every, 0.0), log_pi)
        changes = changes & ~keep_decision(f, philox.keep_words(*coordinates)[0])
        rows.note("keep_prob", every, torch.sigmoid(f), knows)
    if tokens.numel() > 0:
        at = rows.batch_index[changes], rows.positions[changes]
        tokens.index_put_(at, winner[changes].to(tokens.dtype))
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
        rows.note(name, every, values.to(torch.float32), known)
    rows.note("argmax", every, merged.argmax.nan_to_num().long(), knows, unknown=-1)
    return None if tokens.is_cuda else int((~has_law & ~rows.idle).sum())


def race_shard(
    g: torch.Tensor,
    present: torch.Tensor,
    coordinates: philox.Coordinates,
    temperature: torch.Tensor,
    offset: int,
    vocab_size: int,
) -> torch.Tensor:
    """State [R, FIELDS] of rows of float32 logits [R, v], those of the tokens from `offset` on."""
    if g.shape[1] == 0:
        nothing = Shard(*map(g.new_tensor, (-math.inf, -math.inf, offset, 0.0, 0.0, 0.0, -math.inf, 0.0)))
        nobody = g.new_full((len(g), FIELDS - len(nothing)), -1.0)
        return torch.cat([torch.stack(nothing).expand(len(g), -1), nobody], 1).double()
    top = g.amax(1, keepdim=True)
    z = _tempered(g, top, temperature[:, None])
    local = present - offset
    inside = (local >= 0) & (local < g.shape[1])
    at = g.gather(1, local.clamp(0, g.shape[1] - 1)[:, None]).squeeze(1)
    first, second = torch.nn.functional.pad(g, (0, 1), value=-math.inf).topk(2, 1).values.unbind(1)
    weights = z.double().exp()
    shard = Shard(
        top[:, 0],
        second,
        offset + _first_argmax(g),
        _tempered(g, top, torch.ones_like(top)).double().exp().sum(1),
        weights.sum(1),
        torch.where(weights > 0, weights * z.double(), 0.0).sum(1),
        torch.where(inside, at, -math.inf),
        g.isnan().any(1),
    )
    contenders = _contenders(g, coordinates, temperature, offset, vocab_size)
    fields = [*shard, *(field for contender in contenders for field in contender)]
    return torch.stack([field.double() for field in fields], 1)


def _contenders(
    g, coordinates: philox.Coordinates, temperature, offset: int, vocab_size: int
) -> list[Contender]:
    end = offset + g.shape[1]
    words = philox.race_words(*coordinates, end)[:, offset:]
    log_times = torch.log(-torch.log1p(-philox.uniform(words)))
    groups = range(offset // RACE_GROUP, -(-end // RACE_GROUP))
    whole: list[Contender] = []
    cut: list[Contender] = []
    for group in groups:
        begin, stop = group * RACE_GROUP, min((group + 1) * RACE_GROUP, vocab_size)
        part = slice(max(begin, offset) - offset, min(stop, end) - offset)
        is_whole = begin >= offset and stop <= end
        contender = _contender(g[:, part], log_times[:, part], temperature, group, offset + part.start)
        (whole if is_whole else cut).append(contender)
    nobody = Contender(*(torch.full_like(g[:, 0], -1.0) for _ in Contender._fields))
    leader = nobody
    if whole:
        fields = [torch.stack([value.double() for value in field], 1) for field in zip(*whole, strict=True)]
        every = Contender(*fields)
        reference = every.top.amax(1, keepdim=True)
        scores = _group_scores(every, reference, coordinates, temperature, vocab_size)
        best = _first_argmax(torch.where(temperature[:, None] == 0, every.top, scores))
        leader = Contender(*(field.gather(1, best[:, None]).squeeze(1) for field in every))
    return [leader, *cut, *[nobody] * (CONTENDERS - 1 - len(cut))]


def _contender(g, log_times, temperature, group: int, first_token: int) -> Contender:
    top = g.amax(1, keepdim=True)
    z = _tempered(g, top, temperature[:, None])
    scores = torch.where(z > -math.inf, z - log_times, -math.inf)
    winner = torch.where((temperature == 0), _first_argmax(g), _first_argmax(scores))
    return Contender(
        torch.full_like(top[:, 0], group),
        top[:, 0],
        z.exp().sum(1),
        torch.where(temperature == 0, 0.0, scores.amax(1)),
        first_token + winner,
        g.gather(1, winner[:, None]).squeeze(1),
    )


def settle_shards(
    states: torch.Tensor, coordinates: philox.Coordinates, temperature: torch.Tensor, vocab_size: int
) -> tuple[Shard, torch.Tensor, torch.Tensor]:
    """Of states [S, R, FIELDS] of all shards: the merged `Shard`, the winner and its logit."""
    shards = Shard(*states[..., : len(Shard._fields)].unbind(2))
    merged = _merged(shards, temperature)
    width = len(Contender._fields)
    blocks = states[..., len(Shard._fields) :].unflatten(2, (CONTENDERS, width))
    contenders = Contender(*blocks.permute(1, 0, 2, 3).flatten(1, 2).unbind(2))  # [R, S * CONTENDERS] each
    contenders = _joined(contenders, temperature)
    greedy = torch.where(contenders.group >= 0, contenders.top, -math.inf)
    scores = _group_scores(contenders, merged.top[:, None], coordinates, temperature, vocab_size)
    order = contenders.token.argsort(dim=1, stable=True)  # of equals the first token's
    chosen = torch.where(temperature[:, None] == 0, greedy, scores).gather(1, order)
    best = order.gather(1, _first_argmax(chosen)[:, None])
    return (
        merged,
        contenders.token.gather(1, best).squeeze(1).long(),
        contenders.logit.gather(1, best).squeeze(1),
    )


def _merged(shards: Shard, temperature: torch.Tensor) -> Shard:
    top = shards.top.amax(0)
    fall = _tempered(shards.top, top, temperature)
    raw_fall = _tempered(shards.top, top, torch.ones_like(temperature))
    share = fall.exp()
    moment = torch.where(
        share > 0, share * (shards.moment + fall.clamp_min(-1e30) * shards.tempered_mass), 0.0
    )
    leads = shards.top == top
    tokens = torch.where(leads, shards.argmax, math.inf).amin(0)
    of_leader = (leads & (shards.argmax == tokens)).to(top.dtype)
    others = torch.where(of_leader > 0, -math.inf, shards.top)
    return Shard(
        top,
        torch.maximum(shards.second.amax(0), others.amax(0)),
        tokens,
        (shards.raw_mass * raw_fall.exp()).sum(0),
        (shards.tempered_mass * share).sum(0),
        moment.sum(0),
        shards.present.amax(0),
        shards.has_nan.amax(0),
    )


def _joined(contenders: Contender, temperature: torch.Tensor) -> Contender:
    """Parts of one group as one, at the place of the part whose token leads; the others are nobody."""
    same = (contenders.group[:, :, None] == contenders.group[:, None, :]) & (contenders.group >= 0)[
        :, :, None
    ]
    tops = torch.where(same, contenders.top[:, None, :], -math.inf)
    top = tops.amax(2)
    fall = _tempered(contenders.top[:, None, :], top[:, :, None], temperature[:, None, None])
    mass = torch.where(same, contenders.mass[:, None, :] * fall.exp(), 0.0).sum(2)
    scores = torch.where(same, contenders.score[:, None, :] + fall, -math.inf)
    best = scores.amax(2, keepdim=True)
    tokens = torch.where(scores == best, contenders.token[:, None, :], math.inf).amin(2)
    leads = (contenders.group >= 0) & (contenders.token == tokens)
    return contenders._replace(group=torch.where(leads, contenders.group, -1.0), top=top, mass=mass)


def _group_scores(
    contenders: Contender, reference, coordinates: philox.Coordinates, temperature, vocab_size: int
) -> torch.Tensor:
    """Log S - log E of groups [R, n], relative to `reference`; -inf where there is none."""
    groups = -(-vocab_size // RACE_GROUP)
    log_mass = _tempered(contenders.top, reference, temperature[:, None]) + contenders.mass.log()
    if groups > 1:
        words = philox.group_words(*coordinates, groups).gather(1, contenders.group.long().clamp_min(0))
        log_mass = log_mass - torch.log(-torch.log1p(-philox.uniform(words)))
    there = (contenders.group >= 0) & (contenders.top > -math.inf)
    return torch.where(there, log_mass.to(torch.float32), -math.inf)


def _tempered(g: torch.Tensor, top: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Of shapes that broadcast together: at most 0, and 0 at the top, be it infinite."""
    temperature = torch.where(temperature == 0, 1.0, temperature).clamp(1 / 3e38, 2.0**126)
    return torch.where(g == top, 0.0, (g - top) / temperature)


def _first_argmax(score: torch.Tensor) -> torch.Tensor:
    index = torch.arange(score.shape[1], device=score.device)
    return torch.where(score == score.amax(1, keepdim=True), index, score.shape[1] - 1).amin(1)
