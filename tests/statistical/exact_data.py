"""Exact predictions of the data token by enumeration: what a perfect network gives that predicts the data."""

import torch
from enumerable import Law, keep_prob_by_hand

from ggm.chain import Chain
from ggm.sampling.steps import DataPrediction


def posterior_table(data: Law, keep: torch.Tensor, pi: torch.Tensor, sees_own: bool) -> torch.Tensor:
    """Log-probabilities [x, i, a] of the data token at i given noisy tokens x, by Bayes' rule over all data.

    `keep` [L] is each token's probability to be data; without `sees_own` the token at i itself is not given.
    """
    states = data.states()
    same = (states[:, None] == states[None]).double()  # [x, x0, i]
    likely = keep * same + (1 - keep) * pi[states][:, None]
    out = torch.zeros(len(states), data.length, data.vocab_size, dtype=torch.float64)
    for i in range(data.length):
        by = likely.clone()
        if not sees_own:
            by[..., i] = 1.0
        weight = by.prod(2) * data.probs.flatten()
        out[:, i] = weight @ torch.nn.functional.one_hot(states[:, i], data.vocab_size).double()
    return out.log().log_softmax(-1)


class ExactData:
    """P(X_{0,i} = . | X_t) with its own token in sight or without, for stepwise and event-driven samplers.

    `late` evaluates the keep probability of the mixture so many steps later: a planted fault.
    """

    def __init__(self, data: Law, chain: Chain, pi: torch.Tensor, sees_own: bool, late: int = 0) -> None:
        self.law, self.chain, self.pi, self.sees_own, self.late = data, chain, pi, sees_own, late
        self.tables = torch.stack(
            [
                posterior_table(
                    data, torch.tensor(keep_prob_by_hand(chain, t), dtype=torch.float64), pi, sees_own
                )
                for t in range(chain.steps + 1)
            ]
        )

    def at(
        self, tokens: torch.Tensor, positions: torch.Tensor, times: torch.Tensor, now: torch.Tensor
    ) -> DataPrediction:
        """Prediction at positions [B, K] for steps back to times [B], the tokens being those of time `now` [B]."""
        logits = self.tables[
            (now if self.sees_own else times)[:, None], self.law.index(tokens)[:, None], positions
        ]
        late = (times + self.late).clamp(0, self.chain.steps)
        keep_prob = self.chain.keep_prob(late).gather(1, positions)
        shift = None
        if self.sees_own:
            alpha = self.chain.keep_prob(now).gather(1, positions)
            own = tokens.gather(1, positions)
            # Bayes, written as the ratio that own and other tokens were favoured by.
            shift = -((alpha + (1 - alpha) * self.pi[own]) / ((1 - alpha) * self.pi[own])).log()
        return DataPrediction(logits.float(), keep_prob, shift)

    def one_group(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        time: int | torch.Tensor,
        *,
        visited: bool = True,
    ) -> DataPrediction:
        """As `ggm.sampling.stepwise.denoise` asks, for groups of consecutive visits."""
        times = torch.as_tensor(time).expand(len(tokens))
        positions = positions.expand(len(tokens), -1)
        return self.at(tokens, positions, times, times + positions.shape[1] * visited)

    def __call__(self, tokens: torch.Tensor, times: torch.Tensor, now: torch.Tensor) -> DataPrediction:
        """As `ggm.sampling.event_driven.denoise_by_events` asks."""
        return self.at(tokens, torch.arange(self.law.length).expand(len(tokens), -1), times, now)
