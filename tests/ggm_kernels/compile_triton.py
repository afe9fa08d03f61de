"""Compile every Triton kernel for one GPU architecture, on any machine: python compile_triton.py 90.

Run as a process of its own, without TRITON_INTERPRET: interpreted kernels cannot be compiled.
"""

import itertools
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ggm_kernels.triton import corrupt, sigmoid_bce  # noqa: F401  (loads the modules below)

CORRUPT = sys.modules["ggm_kernels.triton.corrupt"]
SIGMOID_BCE = sys.modules["ggm_kernels.triton.sigmoid_bce"]


def compiles(kernel, arch: int, arguments: dict) -> None:
    """Compile `kernel`: strings are types of run-time arguments, all else is constant."""
    signature = {name: kind if isinstance(kind, str) else "constexpr" for name, kind in arguments.items()}
    constants = {name: value for name, value in arguments.items() if not isinstance(value, str)}
    assert list(arguments) == kernel.arg_names, (list(arguments), kernel.arg_names)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32))
    assert len(binary.asm["cubin"]) > 1000
    print(kernel.__name__, "compiled")


def corrupt_kernels(arch: int) -> None:
    flags = [True, False]
    for tokens, optional, pointer in itertools.product(["*i32", "*i64"], flags, flags):
        arguments = {
            "tokens_ptr": tokens, "keep_prob_ptr": "*fp32", "sample_ids_ptr": "*i64" if optional else None,
            "frozen_ptr": "*i1" if optional else None, "noise_table_ptr": "*i32" if optional else None,
            "noisy_ptr": tokens, "is_signal_ptr": "*i1", "length": "i32", "blocks_per_row": "i32",
            "vocab_size": "i32", "seed": "i64" if optional else "i32", "step": "*i64" if pointer else "i32",
            "KEEP_PER_POSITION": optional, "STEP_IS_POINTER": pointer, "STREAM": 0, "BLOCK": 1024,
        }  # fmt: skip
        compiles(CORRUPT._kernel, arch, arguments)


def strides(*names: str) -> dict:
    return {f"{name}{suffix}": "i32" for name in names for suffix in ("_row_stride", "_stride")}


def sigmoid_bce_kernels(arch: int) -> None:
    for dtype, optional in itertools.product(["*fp32", "*bf16", "*fp16"], [True, False]):
        forward = {
            "hidden_ptr": dtype, **strides("hidden"), "weight_ptr": dtype if optional else None,
            **strides("weight"), "bias_ptr": dtype if optional else None,
            "offset_ptr": "*fp32" if optional else None, "candidates_ptr": "*i64", "signal_ptr": "*fp32",
            **strides("signal"), "noise_ptr": "*fp32", **strides("noise"), "loss_ptr": "*fp32",
            "candidate_logits_ptr": "*fp32", "rows": "i32", "vocab_size": "i32", "COUNT": 3,
            "HIDDEN_SIZE": 768, "ROWS": SIGMOID_BCE._ROWS, "COLUMNS": 512,
        }  # fmt: skip
        compiles(SIGMOID_BCE._forward_kernel, arch, forward)
        hidden = {
            "grad_f_ptr": "*fp32", "weight_ptr": dtype, **strides("weight"), "candidates_ptr": "*i32",
            "out_ptr": dtype, "rows": "i32", "vocab_size": "i32", "COUNT": 3, "HIDDEN_SIZE": 768,
            "ROWS": SIGMOID_BCE._ROWS, "COLUMNS": 512,
        }  # fmt: skip
        compiles(SIGMOID_BCE._hidden_kernel, arch, hidden)
        token = {
            "grad_f_ptr": "*fp32", "hidden_ptr": dtype, **strides("hidden"), "tokens_ptr": "*i64",
            "order_ptr": "*i64", "grad_weight_ptr": dtype, "grad_bias_ptr": dtype if optional else None,
            "size": "i32", "vocab_size": "i32", "COUNT": 3, "HIDDEN_SIZE": 768, "COLUMNS": 512,
        }  # fmt: skip
        compiles(SIGMOID_BCE._token_kernel, arch, token)
    gradient = {
        "grad_ptr": "*fp32", "candidate_logits_ptr": "*fp32", "signal_ptr": "*fp32", **strides("signal"),
        "noise_ptr": "*fp32", **strides("noise"), "out_ptr": "*fp32", "size": "i32", "COUNT": 3, "BLOCK": 1024,
    }  # fmt: skip
    compiles(SIGMOID_BCE._gradient_kernel, arch, gradient)


if __name__ == "__main__":
    corrupt_kernels(int(sys.argv[1]))
    sigmoid_bce_kernels(int(sys.argv[1]))
