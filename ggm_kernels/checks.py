"""Argument checks shared by the ops: each names the argument, what was given and what is allowed."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from types import SimpleNamespace

import numpy as np
import torch

INTEGERS = (torch.int32, torch.int64)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def integer(name: str, value: int, *, low: int, high: int) -> int:
    """Check low <= value < high for an integer argument."""
    if isinstance(value, (bool, torch.Tensor)):
        raise TypeError(f"{name}: got {type(value).__name__}; allowed: an int")
    if not isinstance(value, (int, torch.SymInt)):
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name}: got {type(value).__name__}; allowed: an int") from None
    if value < low or value >= high:
        raise ValueError(f"{name}: got {value}; allowed: {low} <= {name} < {high}")
    return value


def number(name: str, value: float, *, low: float, high: float, open_low: bool = False) -> float:
    """Check low <= value <= high (low < value with `open_low`) for a finite real argument."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {type(value).__name__}; allowed: a float")
    value = float(value)
    # Plain comparisons, which NaN fails and torch.compile traces for a number that changes from call to call.
    if not low <= value <= high or value == math.inf or (open_low and value == low):
        left = "<" if open_low else "<="
        upper = "" if math.isinf(high) else f" <= {high:g}"
        raise ValueError(f"{name}: got {value}; allowed: finite and {low:g} {left} {name}{upper}")
    return value


def softcap(value: float) -> float:
    """Check 0 < value < infinity; within float32, so that it is neither 0 nor infinity there."""
    value = number("softcap", value, low=0.0, high=math.inf, open_low=True)
    return min(max(value, 2.0**-126), 2.0**126)


def tensor(
    name: str,
    value: torch.Tensor,
    *,
    dtypes: Sequence[torch.dtype],
    shapes: Sequence[tuple[int, ...]] | None = None,
    dims: Sequence[int] | None = None,
) -> None:
    """Check that `value` is a strided tensor of one of `dtypes` and of one of `shapes` or `dims`."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}; allowed: a torch.Tensor")
    _refuse_dtensor(name, value)
    if value.dtype not in dtypes:
        allowed = ", ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name}: got dtype {value.dtype}; allowed: {allowed}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: got layout {value.layout}; allowed: torch.strided")
    if value.is_nested:
        raise TypeError(f"{name}: got a nested tensor; allowed: a tensor of one shape")
    if dims is not None and value.dim() not in dims:
        allowed = " or ".join(f"{dim}-d" for dim in dims)
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; allowed: a {allowed} tensor")
    if shapes is not None and not has_shape(value, shapes):
        allowed = " or ".join(dict.fromkeys(str(tuple(shape)) for shape in shapes))
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; allowed: {allowed}")


def has_shape(value: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether a tensor is of one of some shapes."""
    # Size by size, too: torch.compile takes a constant shape and a symbolic one for unequal as a whole.
    return value.shape in shapes or any(
        value.dim() == len(other) and all(a == b for a, b in zip(value.shape, other, strict=True))
        for other in shapes
    )


def writable(name: str, value: torch.Tensor) -> None:
    """Check that no two elements of a 2-d tensor to be written share memory, as an expanded one's do."""
    if value.numel() == 0 or value.is_contiguous():
        return
    (rows, columns), (row_step, column_step) = value.shape, value.stride()
    if row_step > (columns - 1) * column_step and (columns == 1 or column_step > 0):
        return  # row after row
    if _steps_meet(rows, row_step, columns, column_step):
        raise ValueError(
            f"{name}: got strides {value.stride()}; allowed: elements with memory of their own (clone it)"
        )


def _steps_meet(rows: int, row_step: int, columns: int, column_step: int) -> bool:
    """Whether some steps along the rows lead where others along the columns do."""
    if rows == 1 or columns == 1:
        return (rows > 1 and row_step == 0) or (columns > 1 and column_step == 0)
    divisor = math.gcd(row_step, column_step)  # 0 where both are
    return divisor == 0 or (column_step // divisor < rows and row_step // divisor < columns)


def apart(written: dict[str, torch.Tensor], read: dict[str, torch.Tensor | None]) -> None:
    """Check that each tensor to be written shares memory with no other one, whatever their strides."""
    spans: list[tuple[int, int, str]] = []
    for name, value in (*written.items(), *read.items()):
        if value is None:
            continue
        low = value.data_ptr()
        high = low + (extent(value))
        for other_low, other_high, other in spans:
            if low < other_high and other_low < high and _share(value, written[other]):
                raise ValueError(
                    f"{name}: got memory that is written as {other}; allowed: memory of its own (clone it)"
                )
        if name in written:
            spans.append((low, high, name))


def extent(value: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last one."""
    if value.is_contiguous():
        return value.nbytes
    steps = sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
    return (steps + 1) * value.element_size()


def _share(value: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one device share a byte: numpy solves for it, and looks at addresses alone."""
    return np.shares_memory(_addresses(value), _addresses(other))


def _addresses(value: torch.Tensor) -> np.ndarray:
    size = value.element_size()
    interface = {
        "data": (value.data_ptr(), True),
        "typestr": f"|V{size}",
        "shape": tuple(value.shape),
        "strides": tuple(step * size for step in value.stride()),
        "version": 3,
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def _refuse_dtensor(name: str, value: torch.Tensor) -> None:
    # Each process holds a part of it, and a kernel sees the memory of one process. Known by its name, because
    # importing torch.distributed takes long and most programs do without; other subclasses are let through.
    if type(value).__name__ == "DTensor":
        raise TypeError(
            f"{name}: got a DTensor; allowed: a plain tensor: call inside the forward of the module that "
            f"FSDP shards, or give {name}.full_tensor()"
        )


def same_device(name: str, value: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Check that two tensors live on one device."""
    if value.device != other.device:
        raise ValueError(
            f"{name}: got device {value.device}; allowed: {other.device}, the device of {other_name}"
        )


def factors(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    dtypes: Sequence[torch.dtype],
    dim: int,
) -> torch.Tensor:
    """Check what logits are the product of; return hidden, under autocast in the dtype of the weight."""
    tensor("hidden", hidden, dtypes=dtypes, dims=(dim,))
    tensor("weight", weight, dtypes=dtypes, dims=(2,))
    if weight.dtype != hidden.dtype and autocasts(hidden):
        hidden = hidden.to(weight.dtype)
    if weight.dtype != hidden.dtype:
        raise TypeError(f"weight: got dtype {weight.dtype}; allowed: {hidden.dtype}")
    if weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}; allowed: (V, {hidden.shape[-1]})")
    same_device("weight", weight, "hidden", hidden)
    if bias is not None:
        tensor("bias", bias, dtypes=(hidden.dtype,), shapes=[weight.shape[:1]])
        same_device("bias", bias, "hidden", hidden)
    return hidden


def autocasts(value: torch.Tensor) -> bool:
    """Whether autocast is on for the device of a tensor: some, as meta, know none and would raise."""
    device = value.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def autocast(value):
    """As autocast has it for products: every operand but float64 in its dtype."""
    if not isinstance(value, torch.Tensor) or value.dtype not in FLOATS:
        return value
    if type(value).__name__ == "DTensor" or not autocasts(value):
        return value
    return value.to(torch.get_autocast_dtype(value.device.type))


def boolean_mask(name: str, mask: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor | None:
    """Check an optional bool mask shaped like `tokens`; return it contiguous."""
    if mask is None:
        return None
    tensor(name, mask, dtypes=(torch.bool,), shapes=[tokens.shape])
    same_device(name, mask, "tokens", tokens)
    return mask.contiguous()


def values_in_range(
    name: str,
    value: torch.Tensor,
    low: float,
    high: float,
    error: type[Exception],
    closed: bool = False,
    allowed: str | None = None,
) -> None:
    """Raise `error` naming the first element outside [low, high), or [low, high] if `closed` (synchronises).

    NaN is outside every range. `allowed` says the range in other words.
    """
    if value.dtype == torch.int32:  # a bound beyond it would be cut to 32 bits
        value = value.long()
    inside = (value >= low) & ((value <= high) if closed else (value < high))
    if bool(inside.all()):
        return
    flat = int((~inside).flatten().to(torch.uint8).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat, device="cpu"), value.shape))
    allowed = allowed or f"[{low}, {high}{']' if closed else ')'}"
    where = f"{name}[{', '.join(map(str, index))}]" if index else name
    raise error(f"{where}: got {value[index].item()}; allowed: {allowed}")
