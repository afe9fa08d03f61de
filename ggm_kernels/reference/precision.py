"""Products in the precision of their arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from ggm_kernels import checks


def without_autocast(function: Callable) -> Callable:
    """Run `function` with autocast off: it would round the operands of float32 products on the way."""

    @functools.wraps(function)
    def run(first: torch.Tensor, *rest):
        if not checks.autocasts(first):  # entering the context takes 8 us
            return function(first, *rest)
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *rest)

    return run
