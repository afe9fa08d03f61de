"""The law of noise tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ggm_kernels import checks
from ggm_kernels.randomness import MAX_VOCAB

_CPU = torch.device("cpu")


class NoiseLaw:
    """A law pi on the vocabulary from which noise tokens are drawn, in O(1) per draw.

    Parameters
    ----------
    probs : torch.Tensor
        Probabilities, shape [V], any floating dtype, each in [0, 1], summing to 1 within 1e-3
        (they are normalised in float64). A token of probability 0 is never drawn.

    Attributes
    ----------
    vocab_size : int
        Number of tokens V.
    mask_id : int or None
        The only token that is ever drawn, if there is just one: such a law needs no table.

    Notes
    -----
    Draws use Walker's alias table in the construction of Vose (1991), built once in float64 on the CPU, so
    every backend and device draws the same token from the same random words. A draw spends one 32-bit word on
    the column and one on acceptance.

    Raises
    ------
    TypeError
        If `probs` is not a floating tensor.
    ValueError
        If `probs` is not one-dimensional, is empty, leaves [0, 1] or does not sum to 1.
    """

    def __init__(self, probs: torch.Tensor) -> None:
        checks.tensor("probs", probs, dtypes=(*checks.FLOATS, torch.float64), dims=(1,))
        if not 1 <= probs.numel() <= MAX_VOCAB:
            raise ValueError(f"probs: got {probs.numel()} entries; allowed: 1 to {MAX_VOCAB}")
        exact = probs.detach().to("cpu", torch.float64)
        checks.values_in_range("probs", exact, 0.0, 1.0, ValueError, closed=True)
        total = float(exact.sum())
        if abs(total - 1.0) > 1e-3:
            raise ValueError(f"probs: got a sum of {total:.6g}; allowed: 1 within 1e-3")
        with torch.inference_mode(False):  # gradients may need it, whoever made it
            exact = exact / total
        self._set(probs.numel(), int(exact.argmax()) if float(exact.max()) == 1.0 else None, exact)

    @classmethod
    def absorbing(cls, vocab_size: int, mask_id: int) -> NoiseLaw:
        """The law that always draws `mask_id`: masked (absorbing) diffusion, at the cost of uniform noise.

        Parameters
        ----------
        vocab_size : int
            Number of tokens V, 1 to 2**31 - 1: of logits, where a network has no logit for the mask.
        mask_id : int
            The mask, 0 to V. V itself stands beside the tokens 0 .. V - 1 that a network gives logits for;
            then calls with this law take it as a token, and `probs` and `log_probs` have V + 1 entries.

        Returns
        -------
        NoiseLaw
            Equal, draw for draw, to ``NoiseLaw(one_hot(mask_id))``. Nothing of size V is made before it is
            asked for.

        Raises
        ------
        TypeError, ValueError
            If an argument is not an int or out of range.
        """
        vocab_size = checks.integer("vocab_size", vocab_size, low=1, high=MAX_VOCAB + 1)
        law = cls.__new__(cls)
        law._set(vocab_size, checks.integer("mask_id", mask_id, low=0, high=vocab_size + 1), None)
        return law

    def _set(self, vocab_size: int, mask_id: int | None, probs: torch.Tensor | None) -> None:
        self.vocab_size, self.mask_id, self._probs = vocab_size, mask_id, probs
        self._table: dict[torch.device, torch.Tensor] = {}
        self._log_probs: dict[torch.device, torch.Tensor] = {}
        self._probs_on: dict[torch.device, torch.Tensor] = {}
        if probs is not None and mask_id is None:  # now, as a graph of torch.compile could not build it later
            self._table[_CPU] = _alias_table(probs)

    @property
    def token_bound(self) -> int:
        """Tokens are below it: V, or V + 1 where the mask stands beside them."""
        return self.vocab_size + (self.mask_id == self.vocab_size)

    @property
    def probs(self) -> torch.Tensor:
        """The law: float64 [token_bound] on the CPU."""
        if self._probs is None:
            with torch.inference_mode(False):
                self._probs = torch.zeros(self.token_bound, dtype=torch.float64, device=_CPU)
                self._probs[self.mask_id] = 1.0
        return self._probs

    def probs_on(self, device: torch.device) -> torch.Tensor:
        """The law on `device`: float64 [token_bound], copied there once, as a CUDA graph asks for."""
        return _on_device(self._probs_on, device, lambda: self.probs)

    def table(self, device: torch.device) -> torch.Tensor:
        """Alias table on `device`: int32 [token_bound, 2], columns (threshold as uint32 bits, alias)."""
        # One of a mask, for which no op asks, is not there yet.
        return _on_device(self._table, device, lambda: _alias_table(self.probs))

    def log_probs(self, device: torch.device) -> torch.Tensor:
        """Natural logarithm of the law on `device`: float32 [token_bound], -inf where it is 0."""
        return _on_device(self._log_probs, device, lambda: self.probs.log().to(torch.float32))

    def __repr__(self) -> str:
        mask = "" if self.mask_id is None else f", mask_id={self.mask_id}"
        return f"NoiseLaw(V={self.vocab_size}{mask})"


def check_noise(noise: NoiseLaw | None, vocab_size: int) -> None:
    """Check that `noise` is None (uniform) or a law over `vocab_size` tokens."""
    if noise is None:
        return
    if not isinstance(noise, NoiseLaw):
        raise TypeError(f"noise: got {type(noise).__name__}; allowed: None (uniform) or a NoiseLaw")
    if noise.vocab_size != vocab_size:
        raise ValueError(
            f"noise: got a law over {noise.vocab_size} tokens; allowed: vocab_size = {vocab_size}"
        )


def drawn_by(noise: NoiseLaw | None, device: torch.device) -> tuple[torch.Tensor | None, int | None]:
    """Alias table and mask of a law, as ops draw from it: at most one of them; neither is uniform."""
    if noise is None:
        return None, None
    return (noise.table(device), None) if noise.mask_id is None else (None, noise.mask_id)


def _on_device(
    copies: dict[torch.device, torch.Tensor], device: torch.device, make: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """The copy on a device of what `make` gives on the CPU; made once, and fit for gradients."""
    if device not in copies:
        with torch.inference_mode(False):
            if _CPU not in copies:
                copies[_CPU] = make()
            copies[device] = copies[_CPU].to(device)
    return copies[device]


def _alias_table(probs: torch.Tensor) -> torch.Tensor:
    # Here, because the package of the core imports the ops, which import this module.
    from ggm_kernels.native.alias_table import alias_table

    return alias_table(probs * probs.numel())
