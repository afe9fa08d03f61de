"""Other people's kernels to measure against, and the list of those that could not be measured here.

    python -m benchmarks.rivals

says which are here, and has those compiled that compile themselves at their first use, which takes a minute.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import NoReturn, Protocol

import pytest
import torch


class CrossEntropy(Protocol):
    """Losses of hidden states [N, d], weight [V, d] and targets [N], summed; each by its row's weight [N]."""

    def __call__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        row_weight: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


_absent: dict[str, str] = {}


def absent() -> Mapping[str, str]:
    """What was asked for and could not be measured, with the reason of each."""
    return dict(_absent)


def record_absence(name: str, reason: str) -> None:
    """Have `name` listed at the end of the run: a rival must not vanish unnoticed."""
    _absent[name] = reason


def skip(name: str, reason: str) -> NoReturn:
    """Skip the benchmark that is running, and have `name` listed at the end of the run."""
    record_absence(name, reason)
    pytest.skip(f"{name}: {reason}")


def rival(name: str, module: str, *, needs_cuda: bool = False) -> ModuleType | None:
    """The rival's module, or None where it cannot run here; then its absence is recorded.

    `name` is what pip installs it by, `module` what is imported; `needs_cuda` says that it runs on no CPU.
    """
    reasons = []
    loaded = None
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == module.partition(".")[0]:
            reasons.append(f"not installed (pip install {name})")
        else:
            reasons.append(f"installed without {missing}, which it needs (pip install {missing})")
    except Exception as error:
        reasons.append(f"does not import: {_first_line(error)}")
    if needs_cuda and not torch.cuda.is_available():
        reasons.append("needs a CUDA device")
    if not reasons:
        return loaded
    record_absence(name, "; ".join(reasons))
    return None


def require(name: str, module: str, *, needs_cuda: bool = False) -> ModuleType:
    """As `rival`, but where the rival is absent the benchmark is skipped."""
    loaded = rival(name, module, needs_cuda=needs_cuda)
    if loaded is None:
        pytest.skip(f"{name}: {_absent[name]}")
    return loaded


def compiled(call: Callable, what: str, try_out: Callable[[Callable], object]) -> Callable:
    """`call` under torch.compile, tried out once; where that fails the benchmark is skipped.

    `what` names the call in the list of absences; `try_out` runs the compiled call, backward included where
    that will be timed.
    """
    torch._dynamo.reset()
    faster = torch.compile(call)
    try:
        try_out(faster)
    except Exception as error:
        skip(f"torch.compile of {what}", f"does not work here: {_first_line(error)}")
    return faster


def flashinfer() -> Callable[[torch.Tensor], torch.Tensor]:
    """FlashInfer's draw from logits [N, V] of any dtype, or skip the benchmark that asks."""
    sampling = require("flashinfer-python", "flashinfer.sampling", needs_cuda=True)

    def draw(logits: torch.Tensor) -> torch.Tensor:
        return sampling.sampling_from_logits(logits.float())

    try:
        draw(torch.zeros(2, 8, device="cuda"))  # compiles it, where that was not done before
    except Exception as error:
        skip("flashinfer-python", f"does not work here: {_first_line(error)}")
    return draw


def liger_kernel(dtype: torch.dtype) -> CrossEntropy:
    """The loss fused with its head."""
    module = require("liger-kernel", "liger_kernel.transformers.functional", needs_cuda=True)
    return _summed(module.liger_fused_linear_cross_entropy)


def liger_kernel_chunked(dtype: torch.dtype) -> CrossEntropy:
    """Log-probabilities as its GRPO loss has them: plain PyTorch, a tile of logits at a time, twice."""
    name = "liger-kernel"
    module = require(name, "liger_kernel.chunked_loss.fused_linear_ppo")
    base = module.LigerFusedLinearPPOBase

    def losses(hidden, weight, targets, reduction):
        losses = -base.chunk_forward(hidden[None], weight, targets[None])[0]
        return losses.sum() if reduction == "sum" else losses

    try:
        losses(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1, dtype=torch.int64), "sum")
    except Exception as error:  # the parts of a loss: not what a release keeps as it is
        skip(f"{name}, chunked", f"does not work here: {_first_line(error)}")
    return _summed(losses)


def cut_cross_entropy(dtype: torch.dtype) -> CrossEntropy:
    """Its own kernels."""
    module = require("cut-cross-entropy", "cut_cross_entropy", needs_cuda=True)
    if dtype == torch.float32:
        skip("cut-cross-entropy in float32", "its backward takes bfloat16 and float16 only")
    return _summed(module.linear_cross_entropy)


def cut_cross_entropy_torch_compile(dtype: torch.dtype) -> CrossEntropy:
    """Full logits, product and loss compiled as one."""
    module = require("cut-cross-entropy", "cut_cross_entropy")
    return _summed(partial(module.linear_cross_entropy, impl="torch_compile"))


def _summed(losses: Callable[..., torch.Tensor]) -> CrossEntropy:
    """Of a loss with a `reduction`: weights of rows are those of the losses that "none" gives."""

    def summed(hidden, weight, targets, row_weight=None):
        if row_weight is None:
            return losses(hidden, weight, targets, reduction="sum")
        return (row_weight * losses(hidden, weight, targets, reduction="none")).sum()

    return summed


# Each gives the rival's cross-entropy of a head, or skips the benchmark that asks.
CROSS_ENTROPIES = [liger_kernel, liger_kernel_chunked, cut_cross_entropy, cut_cross_entropy_torch_compile]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def main() -> None:
    """Command line."""
    finders = {"flashinfer-python": flashinfer}
    finders |= {find.__name__: partial(find, torch.bfloat16) for find in CROSS_ENTROPIES}
    for name, find in finders.items():
        try:
            find()
        except pytest.skip.Exception:
            continue
        print(f"{name}: here")
    for name, reason in absent().items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
