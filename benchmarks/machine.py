"""What a run ran on: processor, threads, GPU, versions. No host name, no path."""

import importlib.metadata
import os
import platform

import torch

import ggm_kernels


def describe() -> dict[str, object]:
    """Facts that a reader needs to judge the figures, or to measure them again."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "ggm-kernels": ggm_kernels.__version__,
        },
        "backends": {name: state.reason for name, state in ggm_kernels.backends().items() if state},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name as its maker has it."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
