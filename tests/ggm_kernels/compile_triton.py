"""Compile every Triton kernel for one GPU architecture, on any machine: python compile_triton.py 90 [FOLDER].

The machine code of each goes into FOLDER. Run as a process of its own, without TRITON_INTERPRET: interpreted kernels cannot be compiled.
"""

import itertools
import sys
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ggm_kernels.triton import commit, corrupt, sigmoid_bce  # noqa: F401  (loads the modules below)
from ggm_kernels.triton.race import settle_kernel
from ggm_kernels.triton.threshold import threshold_kernel

COMMIT = sys.modules["ggm_kernels.triton.commit"]
CORRUPT = sys.modules["ggm_kernels.triton.corrupt"]
SIGMOID_BCE = sys.modules["ggm_kernels.triton.sigmoid_bce"]
GLAUBER_STEP = sys.modules["ggm_kernels.triton.glauber_step"]
LINEAR_GLAUBER_STEP = sys.modules["ggm_kernels.triton.linear_glauber_step"]
TORCH_DTYPES = {"*fp32": torch.float32, "*bf16": torch.bfloat16, "*fp16": torch.float16}
DTYPES = list(TORCH_DTYPES)


def compiles(kernel, arch: int, arguments: dict, **options) -> None:
    """Compile `kernel`: strings are types of run-time arguments (":16": a multiple of 16), all else is constant.

    Pointers are multiples of 16, as those of fresh tensors are.
    """
    types = {name: kind for name, kind in arguments.items() if isinstance(kind, str)}
    signature = {name: types[name].split(":")[0] if name in types else "constexpr" for name in arguments}
    aligned = [name for name, kind in types.items() if kind.startswith("*") or kind.endswith(":16")]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    constants = {name: value for name, value in arguments.items() if not isinstance(value, str)}
    assert list(arguments) == kernel.arg_names, (list(arguments), kernel.arg_names)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    assert len(binary.asm["cubin"]) > 1000
    print(kernel.__name__, "compiled")
    if len(sys.argv) > 2:
        Path(sys.argv[2], f"{described(kernel, arguments)}.cubin").write_bytes(binary.asm["cubin"])


def described(kernel, arguments: dict) -> str:
    """Name of a kernel with what tells its cases apart: types of pointers, and constants."""
    kinds = [
        kind.split(":")[0].strip("*") for kind in arguments.values() if isinstance(kind, str) and "*" in kind
    ]
    constants = [f"{name}={value}" for name, value in arguments.items() if name.isupper()]
    return " ".join(
        [kernel.__name__, "".join(f"{kind[0]}{kind[1:].strip('pf')}" for kind in kinds), *constants]
    )


def corrupt_kernels(arch: int) -> None:
    flags = [True, False]
    for tokens, optional, pointer in itertools.product(["*i32", "*i64"], flags, flags):
        arguments = {
            "tokens_ptr": tokens, "keep_prob_ptr": "*fp32", "sample_ids_ptr": "*i64" if optional else None,
            "frozen_ptr": "*i1" if optional else None, "noise_table_ptr": "*i32" if optional else None,
            "noisy_ptr": tokens, "is_signal_ptr": "*i1", "length": "i32", "blocks_per_row": "i32",
            "vocab_size": "i32", "seed": "i64" if optional else "i32", "step": "*i64" if pointer else "i32",
            "mask_id": None if optional else "i32", "KEEP_DIMS": 2 if optional else 1, "STEP_IS_POINTER": pointer, "STREAM": 0, "BLOCK": 1024,
        }  # fmt: skip
        compiles(CORRUPT._kernel, arch, arguments)


def commit_kernels(arch: int) -> None:
    flags = [True, False]
    for dtype, everything, noises in itertools.product(DTYPES, flags, flags):
        tokens, mask = ("*i32" if everything else "*i64"), ("*i1" if everything else None)
        arguments = {
            "tokens_ptr": tokens, **strides("tokens"), "proposal_ptr": "*i64", **strides("proposal"),
            "score_ptr": dtype, **strides("score"), "eligible_ptr": mask, **strides("eligible"),
            "accepted_ptr": mask, **strides("accepted"), "count": "*i64" if everything else "i32",
            "count_stride": 1, "threshold": "*fp32" if everything else "fp32", "threshold_stride": 1,
            "budget": "*fp32" if everything else "fp32" if noises else None, "budget_stride": 1,
            "noise_table_ptr": "*i32" if everything else None, "mask_id": None if everything else "i32",
            "vocab_size": "i32", "sample_ids_ptr": "*i64" if everything else None, "length": "i32",
            "length_bits": "i32", "seed": "i64" if everything else "i32",
            "step": "*i64" if everything else "i32", "IS_WHOLE": noises, "HAS_LIMIT": True, "COUNT_IS_POINTER": everything,
            "THRESHOLD_IS_POINTER": everything, "BUDGET_IS_POINTER": everything,
            "STEP_IS_POINTER": everything, "NOISES_REST": noises, "STREAM": COMMIT._STREAM, "BLOCK": 1024,
        }  # fmt: skip
        compiles(COMMIT._commit_kernel, arch, arguments)


def strides(*names: str) -> dict:
    return {f"{name}{suffix}": "i32" for name in names for suffix in ("_row_stride", "_stride")}


def sigmoid_bce_kernels(arch: int) -> None:
    for dtype, optional in itertools.product(DTYPES, [True, False]):
        gather = {
            "logits_ptr": dtype, **strides("logits"), "offset_ptr": "*fp32" if optional else None,
            "candidates_ptr": "*i64", "signal_ptr": "*fp32", **strides("signal"), "noise_ptr": "*fp32",
            **strides("noise"), "loss_ptr": "*fp32", "candidate_logits_ptr": "*fp32", "rows": "i32",
            "vocab_size": "i32", "count": "i32", "ROWS": SIGMOID_BCE._ROWS,
            "COLUMNS": SIGMOID_BCE._MAX_CANDIDATES if optional else 1,
        }  # fmt: skip
        compiles(SIGMOID_BCE._gather_kernel, arch, gather)
        forward = {
            "hidden_ptr": dtype, **strides("hidden"), "weight_ptr": dtype,
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
        logits = {
            "grad_f_ptr": "*fp32", "entries_ptr": "*i64", "order_ptr": "*i64", "out_ptr": dtype,
            "size": "i32", "BLOCK": SIGMOID_BCE._ENTRIES,
        }  # fmt: skip
        compiles(SIGMOID_BCE._logits_kernel, arch, logits)
    gradient = {
        "grad_ptr": "*fp32", "candidate_logits_ptr": "*fp32", "signal_ptr": "*fp32", **strides("signal"),
        "noise_ptr": "*fp32", **strides("noise"), "out_ptr": "*fp32", "size": "i32", "COUNT": 3, "BLOCK": 1024,
    }  # fmt: skip
    compiles(SIGMOID_BCE._gradient_kernel, arch, gradient)


def rows(everything: bool) -> dict:
    """Coordinates of the rows of a step: with every optional argument, or none."""
    return {
        "tokens_ptr": "*i32" if everything else "*i64", "token_batch_stride": "i32", "token_stride": 1,
        "length": "i32", "positions_ptr": "*i32" if everything else "*i64", "position_batch_stride": "i32",
        "position_stride": "i64" if everything else 1, "sample_ids_ptr": "*i64" if everything else None,
        "count": "i32", "vocab_size": "i32", "first_row": "i32", "rows": "i32",
        "seed": "i64" if everything else "i32", "step": "*i64" if everything else "i32",
    }  # fmt: skip


def race_flags(everything: bool, greedy: bool) -> dict:
    return {
        "STEP_IS_POINTER": everything, "GREEDY": greedy, "WANTS_RAW": everything,
        "WANTS_LAW": everything and not greedy,
    }  # fmt: skip


def glauber_step_kernels(arch: int) -> None:
    flags = [True, False]
    # Rows times columns: many tokens; few tokens, where a program takes many rows.
    for dtype, (block_rows, block) in itertools.product(DTYPES, [(1, 2048), (128, 4)]):
        aligned = ":16" if block == 2048 else ""
        logits = {
            "logits_ptr": dtype, "batch_stride": "i64" + aligned, "row_stride": "i32" + aligned, "vocab_stride": 1,
        }  # fmt: skip
        for everything, greedy, filtered in itertools.product(flags, flags, flags):
            if (greedy and filtered) or (block == 4 or dtype == "*fp16") and (greedy or not everything):
                continue
            race = {
                **rows(everything), **logits, "first_token": "i32:16", "end_token": "i32" + aligned, "partials_ptr": "*fp32",
                "slots": "i32", "slot": "i32", "parts": "i32", "part_size": "i32" + aligned,
                "present_ptr": "*fp32" if everything else None, "top_ptr": "*fp32" if filtered else None,
                "cut_ptr": "*fp32" if filtered else None, "inverse_temperature": "fp32",
                **race_flags(everything, greedy), "ROWS": block_rows, "BLOCK": block,
            }  # fmt: skip
            compiles(GLAUBER_STEP._race_kernel, arch, race, num_warps=GLAUBER_STEP._WARPS)
        threshold = {
            **logits, "count": "i32", "rows": "i32", "vocab_size": "i32" + aligned, "top_k": "i32", "top_p_units": "i64",
            "log_min_p": "fp32", "top_ptr": "*fp32", "cut_ptr": "*fp32", "inverse_temperature": "fp32",
            "HAS_TOP_K": True, "HAS_TOP_P": True, "ROWS": block_rows, "BLOCK": block,
        }  # fmt: skip
        compiles(threshold_kernel, arch, threshold, num_warps=GLAUBER_STEP._WARPS)
    for everything, greedy, slots in itertools.product(flags, flags, [1, 1024]):
        block_rows = min(GLAUBER_STEP._MAX_ROWS, 1024 // slots)
        optional = "*fp32" if everything else None
        settle = {
            **rows(everything), "partials_ptr": "*fp32", "slots": "i32", "present_ptr": optional,
            "frozen_ptr": "*i1" if everything else None, "rate_ptr": optional, "rate_batch_stride": "i32",
            "rate_stride": "i32", "noise_log_probs_ptr": optional, "uniform_log_prob": "fp32",
            "log_sum_exp_ptr": optional, "log_prob_ptr": optional, "keep_prob_ptr": optional,
            "inverse_temperature": "fp32", "STEP_IS_POINTER": everything, "GREEDY": greedy,
            "NORMALIZE": everything, "ROWS": block_rows, "SLOTS": slots,
        }  # fmt: skip
        compiles(settle_kernel, arch, settle)


def linear_glauber_step_kernels(arch: int) -> None:
    for dtype, everything, block_rows in itertools.product(DTYPES, [True, False], [16, 64]):
        if dtype == "*fp16" and (block_rows == 16 or not everything):
            continue
        block_rows = min(block_rows, LINEAR_GLAUBER_STEP._FUSED_BLOCK_ROWS.get(TORCH_DTYPES[dtype], 64))
        arguments = {
            **rows(everything), "hidden_ptr": dtype, "hidden_batch_stride": "i32:16",
            "hidden_row_stride": "i32:16", "hidden_stride": 1, "weight_ptr": dtype,
            "weight_row_stride": "i32:16", "weight_stride": 1,
            "bias_ptr": dtype if everything else None, "bias_stride": 1, "partials_ptr": "*fp32",
            "parts": "i32", "part_size": "i32", "present_ptr": "*fp32" if everything else None,
            "inverse_temperature": "fp32", **race_flags(everything, False), "HIDDEN_SIZE": 768,
            "ROWS": block_rows, "BLOCK": LINEAR_GLAUBER_STEP._FUSED_TOKENS,
            "COLUMNS": LINEAR_GLAUBER_STEP._FUSED_COLUMNS,
        }  # fmt: skip
        compiles(
            LINEAR_GLAUBER_STEP._race_product_kernel,
            arch,
            arguments,
            num_warps=LINEAR_GLAUBER_STEP._FUSED_WARPS,
        )


if __name__ == "__main__":
    corrupt_kernels(int(sys.argv[1]))
    commit_kernels(int(sys.argv[1]))
    sigmoid_bce_kernels(int(sys.argv[1]))
    glauber_step_kernels(int(sys.argv[1]))
    linear_glauber_step_kernels(int(sys.argv[1]))
