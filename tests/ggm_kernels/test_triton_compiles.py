"""Triton kernels compile for the GPUs that we build for, on a machine without one.

The interpreter accepts what the compiler does not (types, layouts), so its tests alone say too little.
"""

import subprocess
import sys

import pytest

CORRUPT = """
import itertools
from triton.compiler import ASTSource
import triton
from triton.backends.compiler import GPUTarget
from ggm_kernels.triton.corrupt import _kernel

for tokens, ids, noise, pointer in itertools.product(["*i32", "*i64"], [True, False], [True, False], [True, False]):
    signature = {
        "tokens_ptr": tokens, "keep_prob_ptr": "*fp32", "sample_ids_ptr": "*i64" if ids else "constexpr",
        "frozen_ptr": "*i1" if ids else "constexpr", "noise_table_ptr": "*i32" if noise else "constexpr",
        "noisy_ptr": tokens, "is_signal_ptr": "*i1", "length": "i32", "blocks_per_row": "i32",
        "vocab_size": "i32", "seed": "i64" if ids else "i32", "step": "*i64" if pointer else "i32",
        "KEEP_PER_POSITION": "constexpr", "STEP_IS_POINTER": "constexpr", "STREAM": "constexpr",
        "BLOCK": "constexpr",
    }
    constants = {"KEEP_PER_POSITION": noise, "STEP_IS_POINTER": pointer, "STREAM": 0, "BLOCK": 1024}
    constants |= {name: None for name, kind in signature.items() if kind == "constexpr" and name.endswith("_ptr")}
    source = ASTSource(fn=_kernel, signature=signature, constexprs=constants)
    binary = triton.compile(source, target=GPUTarget("cuda", ARCH, 32)).asm["cubin"]
    assert len(binary) > 1000
print("compiled")
"""


@pytest.mark.parametrize("arch", [80, 90])
def test_corrupt_compiles(arch, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", CORRUPT.replace("ARCH", str(arch))],
        env={"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout.strip() == "compiled", result.stderr[-2000:]
