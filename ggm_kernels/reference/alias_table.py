"""Reference of the alias table, by which a token of any law costs two random words."""

from __future__ import annotations

import torch

_ACCEPT_ALL = 2**32 - 1


def alias_table(scaled: torch.Tensor) -> torch.Tensor:
    """Table of a law, given as its probabilities times V, float64 [V] on the CPU: int32 [V, 2].

    Column v keeps its own token where the acceptance word is below its threshold (uint32 bits), and gives its
    alias elsewhere: Walker's table in the construction of Vose (1991).
    """
    left = scaled.tolist()
    threshold = [_ACCEPT_ALL] * len(left)
    alias = list(range(len(left)))
    small = [token for token, value in enumerate(left) if value < 1.0]
    large = [token for token, value in enumerate(left) if value >= 1.0]
    while small and large:
        under, over = small.pop(), large[-1]
        threshold[under] = min(int(left[under] * 2.0**32), _ACCEPT_ALL)
        alias[under] = over
        left[over] -= 1.0 - left[under]
        if left[over] < 1.0:
            small.append(large.pop())
    # What is left in `small` is there by rounding: its scaled probability is 1 up to a few ulp. Only a
    # token of probability 0 must not keep its column, and rounding cannot lift it that far.
    table = torch.tensor([threshold, alias], dtype=torch.int64, device="cpu").T
    return torch.where(table >= 2**31, table - 2**32, table).to(torch.int32).contiguous()
