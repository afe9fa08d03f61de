"""Attention: PyTorch's scaled dot product, or flash-attn where it is installed and asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from ggm.extras import require

IMPLEMENTATIONS = ("sdpa", "flash")
# All that flash-attn computes in.
_HALVES = (torch.bfloat16, torch.float16)


def check_installed(implementation: str) -> None:
    """Check that an implementation can be used.

    Raises
    ------
    MissingExtraError
        If flash-attn is asked for and not installed.
    """
    if implementation == "flash":
        _flash_attn_func()


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    implementation: str,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention: full (bidirectional), causal, or to the keys that a mask allows.

    Parameters
    ----------
    query : torch.Tensor
        float [B, Q, heads, head size].
    key, value : torch.Tensor
        float [B, L, heads, head size].
    implementation : str
        "sdpa", or "flash": flash-attn or, where that is missing, flash-attn-4, for CUDA tensors. Both
        know bfloat16 and float16 only; in place of any other dtype they are given bfloat16, and the
        result is cast back.
    causal : bool
        Whether query i sees keys 0..i only; then Q = L.
    mask : torch.Tensor, optional
        bool [1 or B, 1, Q, L]: True where a query sees a key. Not with "flash", nor with `causal`.

    Returns
    -------
    torch.Tensor
        float [B, Q, heads, head size], in the dtype of `value`.

    Raises
    ------
    MissingExtraError
        If flash-attn is asked for and not installed.
    ValueError
        If flash-attn does not serve the device.
    """
    if implementation == "flash":
        assert mask is None, "flash-attn takes no mask"
        return _flash(query, key, value, causal)
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    return mixed.transpose(1, 2)


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    flash_attn_func = _flash_attn_func()
    # Under autocast `value` is what a linear layer gave: half precision already.
    half = value.dtype if value.dtype in _HALVES else torch.bfloat16
    try:
        mixed = flash_attn_func(query.to(half), key.to(half), value.to(half), causal=causal)
    except (RuntimeError, AssertionError) as error:  # flash-attn-4 asserts what it serves
        if value.is_cuda:
            raise
        raise ValueError(f"attention: got 'flash' on {value.device}; allowed there: 'sdpa'") from error
    if isinstance(mixed, tuple):  # flash-attn-4 gives the sums of exponentials, too
        mixed = mixed[0]
    return mixed.to(value.dtype)


def _flash_attn_func() -> Callable[..., Any]:
    """Of flash-attn 2; else of flash-attn-4, which is all that its folder then holds."""
    package = require("flash_attn", extra="flash")
    if not hasattr(package, "flash_attn_func"):
        package = require("flash_attn.cute", extra="flash4")
    found: Callable[..., Any] = package.flash_attn_func
    return found
