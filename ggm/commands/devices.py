"""Check of a device's name."""

from __future__ import annotations

import torch


def check_device(name: str) -> None:
    """Check that tensors can be made there, and hold numbers.

    Raises
    ------
    ValueError
        If not.
    """
    try:
        torch.empty(1, device=name).cpu()  # "meta" gives none
    except (RuntimeError, AssertionError) as error:  # the second one for a torch without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device: got {name!r}; allowed: a device that torch has ({reason})") from error
