"""Rows to be resampled, from logits or hidden states: inputs, what PyTorch users write, and ours."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from ggm_kernels import glauber_step, linear_glauber_step

HIDDEN_SIZE = 768
LOGITS_LIMIT = 8 * 2**30  # bytes of logits beyond which a size is left to the calls that make none
FILTERS = {"top-k 50": {"top_k": 50}, "top-p 0.9": {"top_p": 0.9}, "min-p 0.05": {"min_p": 0.05}}


@dataclass(frozen=True)
class Size:
    """Rows N, vocabulary V."""

    rows: int = 256
    vocab_size: int = 50257

    def __str__(self) -> str:
        return f"N={self.rows}-V={self.vocab_size}"


def by_products(rows: "Rows") -> dict[str, torch.Tensor]:
    """Memory for what samplers ask for most."""
    return {name: torch.empty(rows.tokens.shape) for name in ("log_sum_exp", "entropy")}


def options(rows: "Rows") -> dict[str, torch.Tensor]:
    """Numbers row by row, and a mixture that seldom draws noise."""
    alike = torch.ones(rows.tokens.shape)
    return {"temperature": alike, "mixture": alike * 0.999, "logit_shift": alike}


def everything(rows: "Rows") -> dict[str, Any]:
    """Every by-product, every filter, a mixture, the keep decision, soft cap and shift."""
    names = ("log_prob", "keep_prob", "raw_log_prob", "margin")
    return {
        **by_products(rows),
        **{name: torch.empty(rows.tokens.shape) for name in names},
        "argmax": torch.empty_like(rows.tokens),
        **{name: value for filters in FILTERS.values() for name, value in filters.items()},
        **options(rows),
        "noise_rate": 0.5,
        "normalize": True,
        "softcap": 30.0,
    }


def frozen(rows: "Rows") -> dict[str, torch.Tensor]:
    """Every position frozen."""
    return {"frozen": torch.ones(rows.tokens.shape, dtype=torch.bool)}


def seldom_noise(rows: "Rows") -> dict[str, torch.Tensor]:
    """Keep or replace at a rate at which all but a few rows keep their token."""
    return {"noise_rate": torch.full((1,), 1e-3)}


def keep_prob(rows: "Rows") -> dict[str, torch.Tensor]:
    """The same, and the probability of keeping, for which kept rows are read."""
    return {**seldom_noise(rows), "keep_prob": torch.empty(rows.tokens.shape)}


def noise_alone(rows: "Rows") -> dict[str, torch.Tensor]:
    """A mixture that draws its noise in every row; they are read, since one without a law keeps its token."""
    return {"mixture": torch.zeros(rows.tokens.shape)}


def absent(rows: "Rows") -> dict[str, torch.Tensor]:
    """No row with a position."""
    return {"positions": torch.full_like(rows.tokens, -1)}


ASKED_FOR = {
    "by-products": by_products,
    "options": options,
    "keep or replace": seldom_noise,
    "keep or replace, keep_prob": keep_prob,
    "mixture, noise alone": noise_alone,
    "frozen, by-products": lambda rows: {**by_products(rows), **frozen(rows)},
    "frozen, everything": lambda rows: {**everything(rows), **frozen(rows)},
    "absent, everything": lambda rows: {**everything(rows), **absent(rows)},
}


# So small that what is timed is the call: one row, and the vocabularies of DNA and of an alphabet.
SMALL_SIZES = [Size(1, 100), Size(64, 4), Size(64, 27)]


@dataclass
class Rows:
    """One sequence of N positions, all to be resampled, and what their logits are made of."""

    tokens: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor
    weight: torch.Tensor
    logits: torch.Tensor | None

    def step(self, backend: str | None = None, **arguments) -> torch.Tensor:
        arguments = {"positions": self.positions, "seed": 1, "step": 0, "backend": backend, **arguments}
        return glauber_step(self.tokens, self.need_logits()[None], **arguments)

    def linear_step(self, backend: str | None = None, **arguments) -> torch.Tensor:
        arguments = {"positions": self.positions, "seed": 1, "step": 0, "backend": backend, **arguments}
        return linear_glauber_step(self.tokens, self.hidden[None], self.weight, **arguments)

    def need_logits(self) -> torch.Tensor:
        if self.logits is None:
            pytest.skip("the logits alone would take more than 8 GiB")
        return self.logits


def make_rows(size: Size, device: torch.device) -> Rows:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hidden = torch.randn(size.rows, HIDDEN_SIZE, device=device, dtype=dtype)
    weight = torch.randn(size.vocab_size, HIDDEN_SIZE, device=device, dtype=dtype) * 0.05
    fits = size.rows * size.vocab_size * 4 <= LOGITS_LIMIT
    tokens = torch.randint(size.vocab_size, (1, size.rows), device=device)
    positions = torch.arange(size.rows, device=device)
    return Rows(tokens, positions, hidden, weight, linear(hidden, weight) if fits else None)


def multinomial(logits: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(logits.float().softmax(-1), 1)[:, 0]


def gumbel(logits: torch.Tensor) -> torch.Tensor:
    uniform = torch.rand(logits.shape, device=logits.device)
    return (logits.float() - torch.log(-torch.log(uniform))).argmax(-1)


def filtered(logits: torch.Tensor, top_k=None, top_p=None, min_p=None) -> torch.Tensor:
    """Hugging Face's logits processors in their order, then multinomial."""
    logits = logits.float()
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p is not None:
        ascending, order = logits.sort()
        removed = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        logits = logits.masked_fill(removed.scatter(1, order, removed), -torch.inf)
    if min_p is not None:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs < min_p * probs.amax(1, keepdim=True), -torch.inf)
    return multinomial(logits)
