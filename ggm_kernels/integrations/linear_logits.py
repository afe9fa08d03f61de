"""Logits of a linear head that are not multiplied out before somebody asks for all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_map


@dataclass(frozen=True, eq=False)
class LinearLogits:
    """``softcap * tanh(linear(hidden, weight, bias) / softcap) / temperature``, kept as its factors.

    The samplers of this package draw from it without a tensor of [B, L, V]. Sequences and positions are
    taken by indexing, ``clone()`` copies nothing, ``/`` changes the temperature. Whatever else one does with
    a tensor (a method of it, a function of torch) multiplies out, and happens to the tensor that results.

    Attributes
    ----------
    hidden : torch.Tensor
        What the head is given: [B, L, d].
    weight : torch.Tensor
        Weight of the head, dtype of `hidden`: [V, d].
    bias : torch.Tensor, optional
        Bias of the head: [V].
    softcap : float, optional
        Soft cap of the logits.
    temperature : float
        Divides the logits, above 0.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None
    temperature: float = 1.0

    @classmethod
    def of(
        cls, hidden: torch.Tensor, lm_head: torch.nn.Module | torch.Tensor, softcap: float | None = None
    ) -> LinearLogits:
        """Logits of a head: a `torch.nn.Linear`, a module with `weight` and `bias`, or the weight."""
        if isinstance(lm_head, torch.Tensor):
            return cls(hidden, lm_head, None, softcap)
        bias = getattr(lm_head, "bias", None)
        weight: Any = lm_head.weight
        return cls(hidden, weight, bias, softcap)

    @property
    def shape(self) -> torch.Size:
        """[B, L, V]."""
        return torch.Size((*self.hidden.shape[:-1], self.weight.shape[0]))

    @property
    def dtype(self) -> torch.dtype:
        """That of the tensor that they would be multiplied out into."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Device of the factors."""
        return self.hidden.device

    def clone(self) -> LinearLogits:
        """The same: nobody writes into the factors."""
        return self

    def at(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits of one token a position, before the temperature: float32, as `tokens` [B, L]."""
        logits = (self.hidden.float() * self.weight[tokens].float()).sum(-1)
        return self._capped(logits if self.bias is None else logits + self.bias[tokens].float())

    def multiplied_out(self) -> torch.Tensor:
        """All of them: float32 [B, L, V]."""
        logits = torch.nn.functional.linear(self.hidden, self.weight, self.bias)
        return self._capped(logits.float()) / self.temperature

    def _capped(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def __truediv__(self, temperature: float) -> LinearLogits:
        return replace(self, temperature=self.temperature * float(temperature))

    def __getitem__(self, index: Any) -> LinearLogits:
        """Sequences and positions: slices or tensors for the first two dimensions, all of the vocabulary."""
        first = index if isinstance(index, tuple) else (index,)
        whole = first[2:] in ((), (slice(None),), (Ellipsis,))
        if not whole or any(isinstance(part, int) or part is None for part in first[:2]):
            raise IndexError(f"LinearLogits: got index {index}; allowed: [sequences, positions]")
        return replace(self, hidden=self.hidden[first[:2]])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of protocols, which ask whether it is there
            raise AttributeError(name)
        return getattr(self.multiplied_out(), name)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        multiply = lambda value: value.multiplied_out() if isinstance(value, cls) else value  # noqa: E731
        return function(*tree_map(multiply, tuple(args)), **tree_map(multiply, kwargs or {}))
