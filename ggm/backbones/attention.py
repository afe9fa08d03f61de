"""Attention: PyTorch's scaled dot product, or flash-attn where it is installed and asked for."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

IMPLEMENTATIONS = ("sdpa", "flash")


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
        "sdpa", or "flash" (flash-attn: CUDA tensors in bfloat16 or float16).
    causal : bool
        Whether query i sees keys 0..i only; then Q = L.
    mask : torch.Tensor, optional
        bool [1 or B, 1, Q, L]: True where a query sees a key. Not with "flash", nor with `causal`.

    Returns
    -------
    torch.Tensor
        float [B, Q, heads, head size].

    Raises
    ------
    ImportError
        If flash-attn is asked for and not installed.
    """
    if implementation == "flash":
        assert mask is None, "flash-attn takes no mask"
        return _flash(query, key, value, causal)
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    return mixed.transpose(1, 2)


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise ImportError("attention='flash' needs flash-attn: pip install 'ggm-kernels[flash]'") from error
    return flash_attn_func(query, key, value, causal=causal)
