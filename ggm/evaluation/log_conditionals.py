"""What the likelihood bound reads of a network: log-conditionals of X_t, and their mean over the noise."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn.functional import linear

from ggm.evaluation.bound import Noise
from ggm.mixture import log_mixture
from ggm.sampling.steps import DataPrediction, LinearLogits, Prediction
from ggm_kernels import linear_glauber_step

# Rows of so many tokens are summed over the vocabulary; longer ones are looked at through draws of the noise.
SUMMED_VOCABULARY = 4096


class LogConditionals(Protocol):
    """A network's log-conditionals of X_t at R rows."""

    def at(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logarithm of m at tokens [R, C]: float64 [R, C]."""
        ...

    def mean(self) -> torch.Tensor | None:
        """Mean of log m over pi, float64 [R]; None where it has no closed form."""
        ...


def log_conditionals(given: Prediction, current: torch.Tensor, noise: Noise) -> LogConditionals:
    """Log-conditionals of X_t at B x K places, R rows.

    Parameters
    ----------
    given : Prediction
        What the network gives: logits [B, K, V], their factors, or a prediction of the data.
    current : torch.Tensor
        Tokens that stood there when it was asked, int64 [B, K].
    noise : Noise
        pi.
    """
    if isinstance(given, DataPrediction):
        shift = None if given.logit_shift is None else given.logit_shift.flatten()
        of_data = _of_logits(given.logits, current.flatten(), shift, noise)
        return _Mixture(of_data, given.keep_prob.flatten()[:, None], noise)
    return _of_logits(given, current.flatten(), None, noise)


def _of_logits(
    given: torch.Tensor | LinearLogits, current: torch.Tensor, shift: torch.Tensor | None, noise: Noise
) -> LogConditionals:
    if isinstance(given, LinearLogits):
        if noise.vocab_size > SUMMED_VOCABULARY:
            return _Products(given, current, shift, noise)
        given = linear(given.hidden, given.weight, given.bias)
    logits = given.flatten(0, 1).double()
    if shift is not None:
        logits = logits.scatter_add(1, current[:, None], shift[:, None])
    return _AllLogits(logits, noise)


class _AllLogits:
    """Log-conditionals from logits [R, V]."""

    def __init__(self, logits: torch.Tensor, noise: Noise) -> None:
        self._log_probs = logits.log_softmax(dim=1)
        self._probs = noise.probs.to(logits.device)

    def at(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._log_probs.gather(1, tokens)

    def mean(self) -> torch.Tensor:
        # A token that noise never draws may have probability 0.
        return torch.where(self._probs > 0.0, self._probs * self._log_probs, 0.0).sum(dim=1)


class _Products:
    """Log-conditionals from hidden states [R, d] and a head, without all R x V logits at once.

    The mean of the logits over pi is one dot product with the mean row of the head, and the logarithm of the
    sum of their exponentials a by-product of the kernel.
    """

    def __init__(
        self, given: LinearLogits, current: torch.Tensor, shift: torch.Tensor | None, noise: Noise
    ) -> None:
        hidden, self._weight, self._bias = given.hidden.flatten(0, 1), given.weight, given.bias
        self._hidden, self._current, self._shift, self._noise = hidden, current, shift, noise
        self._log_sum_exp = torch.empty(len(hidden), 1, dtype=torch.float32, device=hidden.device)
        linear_glauber_step(
            current[:, None].clone(),
            hidden[:, None],
            self._weight,
            torch.zeros(1, dtype=torch.int64, device=hidden.device),
            bias=self._bias,
            seed=0,
            step=0,
            logit_shift=None if shift is None else shift.float()[:, None],
            log_sum_exp=self._log_sum_exp,
        )

    def at(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.einsum("rd,rcd->rc", self._hidden.double(), self._weight[tokens].double())
        if self._bias is not None:
            logits = logits + self._bias[tokens].double()
        if self._shift is not None:
            logits = torch.where(tokens == self._current[:, None], logits + self._shift[:, None], logits)
        return logits - self._log_sum_exp.double()

    def mean(self) -> torch.Tensor:
        probs = self._noise.probs.to(self._hidden.device)
        row = probs @ self._weight.double()
        offset = 0.0 if self._bias is None else probs @ self._bias.double()
        total = self._hidden.double() @ row + offset - self._log_sum_exp[:, 0].double()
        if self._shift is not None:
            total = total + self._noise.of(self._current) * self._shift
        return total


class _Mixture:
    """Log-conditionals of X_t from those of the data: alpha p0 + (1 - alpha) pi."""

    def __init__(self, of_data: LogConditionals, keep_prob: torch.Tensor, noise: Noise) -> None:
        self._of_data, self._keep_prob, self._noise = of_data, keep_prob, noise

    def at(self, tokens: torch.Tensor) -> torch.Tensor:
        return log_mixture(self._of_data.at(tokens), self._keep_prob, self._noise.of(tokens))

    def mean(self) -> torch.Tensor | None:
        if self._noise.vocab_size > SUMMED_VOCABULARY:
            return None
        probs = self._noise.probs.to(self._keep_prob.device)
        every = torch.arange(self._noise.vocab_size, device=probs.device)
        log_probs = self.at(every.expand(len(self._keep_prob), -1))
        return torch.where(probs > 0.0, probs * log_probs, 0.0).sum(dim=1)
