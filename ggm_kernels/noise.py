"""The law of noise tokens."""

from __future__ import annotations

import torch

from ggm_kernels import checks
from ggm_kernels.randomness import MAX_VOCAB

_ACCEPT_ALL = 2**32 - 1


class NoiseLaw:
    """A law pi on the vocabulary from which noise tokens are drawn, in O(1) per draw.

    Parameters
    ----------
    probs : torch.Tensor
        Probabilities, shape [V], any floating dtype, each in [0, 1], summing to 1 within 1e-3
        (they are normalised in float64). A token of probability 0 is never drawn.

    Notes
    -----
    Draws use Walker's alias table in the construction of Vose (1991), built once in float64 on the CPU,
    so every backend and device draws the same token from the same random words. A draw spends one
    32-bit word on the column and one on acceptance.

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
        exact = exact / total
        self.probs = exact
        self._table = {torch.device("cpu"): _alias_table(exact)}
        self._log_probs = {torch.device("cpu"): exact.log().to(torch.float32)}

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        return self.probs.numel()

    def table(self, device: torch.device) -> torch.Tensor:
        """Alias table on `device`: int32 [V, 2], columns (acceptance threshold as uint32 bits, alias)."""
        return _on_device(self._table, device)

    def log_probs(self, device: torch.device) -> torch.Tensor:
        """Natural logarithm of the law on `device`: float32 [V], -inf where the probability is 0."""
        return _on_device(self._log_probs, device)

    def __repr__(self) -> str:
        return f"NoiseLaw(V={self.vocab_size})"


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


def _on_device(copies: dict[torch.device, torch.Tensor], device: torch.device) -> torch.Tensor:
    if device not in copies:
        copies[device] = copies[torch.device("cpu")].to(device)
    return copies[device]


def _alias_table(probs: torch.Tensor) -> torch.Tensor:
    size = probs.numel()
    scaled = (probs * size).tolist()
    threshold = [_ACCEPT_ALL] * size
    alias = list(range(size))
    small = [token for token, value in enumerate(scaled) if value < 1.0]
    large = [token for token, value in enumerate(scaled) if value >= 1.0]
    while small and large:
        under, over = small.pop(), large[-1]
        threshold[under] = min(int(scaled[under] * 2.0**32), _ACCEPT_ALL)
        alias[under] = over
        scaled[over] -= 1.0 - scaled[under]
        if scaled[over] < 1.0:
            small.append(large.pop())
    # What is left in `small` is there by rounding: its scaled probability is 1 up to a few ulp. Only a
    # token of probability 0 must not keep its column, and rounding cannot lift it that far.
    table = torch.tensor([threshold, alias], dtype=torch.int64, device="cpu").T
    return torch.where(table >= 2**31, table - 2**32, table).to(torch.int32).contiguous()
