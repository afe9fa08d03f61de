"""Laws small enough to enumerate, and the statistics that samples are held against."""

from __future__ import annotations

import math

import torch

from ggm.chain import Chain
from ggm_kernels import NoiseLaw

# False-alarm rate of every comparison of samples with a law. Seeds are fixed, so a test that passes
# once passes always; the rate says how likely a correct program would have failed at the choice of
# the seed.
FALSE_ALARM = 1e-6


class Law:
    """A joint law of L tokens: probabilities float64 of shape [V] * L."""

    def __init__(self, probs: torch.Tensor) -> None:
        self.probs = probs / probs.sum()
        self.length, self.vocab_size = probs.dim(), probs.shape[0]

    def states(self) -> torch.Tensor:
        """All sequences, int64 [V**L, L], in the order of ``probs.flatten()``."""
        axes = [torch.arange(self.vocab_size)] * self.length
        return torch.cartesian_prod(*axes).view(-1, self.length)

    def index(self, tokens: torch.Tensor) -> torch.Tensor:
        """Index of each sequence [B, L] in ``probs.flatten()``."""
        powers = self.vocab_size ** torch.arange(self.length - 1, -1, -1)
        return (tokens.long() * powers).sum(-1)

    def sample(self, count: int, seed: int) -> torch.Tensor:
        """Sequences int64 [count, L] by PyTorch's own generator."""
        generator = torch.Generator().manual_seed(seed)
        index = torch.multinomial(self.probs.flatten(), count, replacement=True, generator=generator)
        return self.states()[index]

    def noised(self, keep_prob: list[float], pi: torch.Tensor) -> Law:
        """Law after every position i was kept with keep_prob[i] and else drawn from pi."""
        probs = self.probs
        for axis, keep in enumerate(keep_prob):
            others = probs.sum(axis, keepdim=True)
            shape = [1] * self.length
            shape[axis] = self.vocab_size
            probs = keep * probs + (1.0 - keep) * others * pi.view(shape)
        return Law(probs)

    def log_conditional(self, tokens: torch.Tensor, position: int) -> torch.Tensor:
        """log P(X_i = . | X_{-i}) for each sequence [B, L]: float64 [B, V]."""
        moved = self.probs.movedim(position, -1).reshape(-1, self.vocab_size)
        others = [i for i in range(self.length) if i != position]
        powers = self.vocab_size ** torch.arange(self.length - 2, -1, -1)
        rows = moved[(tokens[:, others].long() * powers).sum(-1)]
        return (rows / rows.sum(-1, keepdim=True)).log()


def ising_chain(length: int = 6, coupling: float = 0.7, field: float = 0.2) -> Law:
    """Spins on a line: neighbours like to agree, up is a little more likely."""
    spins = Law(torch.ones([2] * length)).states().double() * 2 - 1
    energy = coupling * (spins[:, 1:] * spins[:, :-1]).sum(1) + field * spins.sum(1)
    return Law(energy.exp().view([2] * length))


def potts_ring(length: int = 4, vocab_size: int = 3, coupling: float = 1.2) -> Law:
    """Colours on a ring: neighbours like to agree, colour 0 is a little more likely."""
    states = Law(torch.ones([vocab_size] * length)).states()
    energy = coupling * (states == states.roll(1, 1)).sum(1).double() + 0.3 * (states == 0).sum(1)
    return Law(energy.exp().view([vocab_size] * length))


def random_joint(length: int = 3, vocab_size: int = 5, spread: float = 1.5, seed: int = 0) -> Law:
    """A law without structure."""
    generator = torch.Generator().manual_seed(seed)
    shape = [vocab_size] * length
    return Law((spread * torch.randn(shape, generator=generator, dtype=torch.float64)).exp())


LAWS = {"ising": ising_chain, "potts": potts_ring, "random": random_joint}


def skewed(vocab_size: int) -> torch.Tensor:
    """A noise law far from uniform: probabilities proportional to 1, 2, .., V."""
    weights = torch.arange(1, vocab_size + 1, dtype=torch.float64)
    return weights / weights.sum()


def uniform(vocab_size: int) -> torch.Tensor:
    return torch.full((vocab_size,), 1.0 / vocab_size, dtype=torch.float64)


def noise_law(pi: torch.Tensor) -> NoiseLaw | None:
    """What the public calls take for pi: None where it is uniform."""
    return None if torch.equal(pi, uniform(len(pi))) else NoiseLaw(pi)


def uneven_chain(length: int, sweeps: int = 3, seed: int = 1) -> Chain:
    """A chain whose rates differ at every step; its last sweep is all noise: X_T ~ pi**L."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(length, generator=generator) for _ in range(sweeps)]
    rates = 0.1 + 0.6 * torch.rand(sweeps, length, generator=generator, dtype=torch.float64)
    rates[-1] = 1.0
    return Chain(torch.stack(orders), rates.flatten())


def keep_prob_by_hand(chain: Chain, time: int) -> list[float]:
    """alpha_{i,t} by its definition: a loop over the steps before t."""
    keep = [1.0] * chain.length
    for step in range(time):
        keep[int(chain.positions[step])] *= 1.0 - float(chain.noise_rate[step])
    return keep


def law_at(data: Law, chain: Chain, time: int, pi: torch.Tensor) -> Law:
    """Exact law of X_t."""
    return data.noised(keep_prob_by_hand(chain, time), pi)


class ExactConditionals:
    """Logits of P(X_{t,i} = . | X_{t,-i}) from the exact law of X_t: what a perfect network gives.

    ``shift`` evaluates them at time t + shift: a planted fault.
    """

    def __init__(self, data: Law, chain: Chain, pi: torch.Tensor, shift: int = 0) -> None:
        self.laws = [law_at(data, chain, t, pi) for t in range(chain.steps + 1)]
        self.shift = shift

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor, time: int) -> torch.Tensor:
        law = self.laws[min(max(time + self.shift, 0), len(self.laws) - 1)]
        logits = [law.log_conditional(tokens, int(position)) for position in positions]
        return torch.stack(logits, dim=1).float()


def total_variation(tokens: torch.Tensor, law: Law) -> float:
    """Total variation distance between the histogram of sequences [B, L] and a law."""
    counts = torch.bincount(law.index(tokens), minlength=law.probs.numel())
    return float(0.5 * (counts / len(tokens) - law.probs.flatten()).abs().sum())


def sampling_error(law: Law, count: int, false_alarm: float = FALSE_ALARM) -> float:
    """Total variation that `count` exact samples stay below but for the false-alarm rate.

    The mean is at most the sum of half the standard deviations of the frequencies. One sample moves
    the distance by at most 1 / count, so by McDiarmid's inequality it exceeds its mean by s with
    probability at most exp(-2 count s**2).
    """
    p = law.probs.flatten()
    mean = 0.5 * float((p * (1 - p) / count).sqrt().sum())
    return mean + math.sqrt(math.log(1.0 / false_alarm) / (2.0 * count))


def assert_follows(tokens: torch.Tensor, law: Law) -> None:
    """Fail unless sequences [B, L] follow the law within the multinomial sampling error."""
    distance, bound = total_variation(tokens, law), sampling_error(law, len(tokens))
    assert distance <= bound, f"total variation {distance:.4f}, sampling error {bound:.4f}"


def assert_rates(hits: torch.Tensor, probs: torch.Tensor) -> None:
    """Fail unless the columns of hits, bool [B, L], are true at rates probs [L].

    Hoeffding's inequality for each column, the false-alarm rate shared out among columns and sides.
    """
    count, columns = hits.shape
    bound = math.sqrt(math.log(2 * columns / FALSE_ALARM) / (2.0 * count))
    gap = (hits.double().mean(0) - probs).abs().max()
    assert gap <= bound, f"rate off by {gap:.4f}, sampling error {bound:.4f}"
