"""Triton kernels compile for the GPUs that we build for, on a machine without one.

The interpreter accepts what the compiler does not (types, layouts), so its tests alone say too little.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_triton.py")


# `make cuda-check` compiles these and more for both, and compares their machine code.
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_every_kernel_compiles(arch, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(SCRIPT.parents[2])}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(arch)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    kernels = {line.split()[0] for line in result.stdout.splitlines()}  # each with its registers
    assert kernels == {
        "_kernel", "_commit_kernel", "_forward_kernel", "_gather_kernel", "_hidden_kernel", "_token_kernel",
        "_logits_kernel", "_gradient_kernel", "_sums_kernel", "_loss_kernel", "_gradients_kernel", "_bias_kernel",
        "sums_kernel", "settle_kernel", "threshold_kernel", "_race_product_kernel",
    }  # fmt: skip
