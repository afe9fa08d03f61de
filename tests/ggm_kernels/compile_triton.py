"""Compile every Triton kernel for one GPU architecture, on any machine: python compile_triton.py 90 [FOLDER].

The machine code of each goes into FOLDER; without one, each kernel is compiled for a few cases, of bfloat16. Run as a process of its own, without TRITON_INTERPRET: interpreted kernels cannot be compiled.
"""

import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# They load the modules below.
from ggm_kernels.triton import (  # noqa: F401
    commit,
    corrupt,
    linear_cross_entropy,
    shared_sigmoid_bce,
    sigmoid_bce,
)

COMMIT = sys.modules["ggm_kernels.triton.commit"]
CORRUPT = sys.modules["ggm_kernels.triton.corrupt"]
SIGMOID_BCE = sys.modules["ggm_kernels.triton.sigmoid_bce"]
SHARED = sys.modules["ggm_kernels.triton.shared_sigmoid_bce"]
CROSS_ENTROPY = sys.modules["ggm_kernels.triton.linear_cross_entropy"]
GLAUBER_STEP = sys.modules["ggm_kernels.triton.glauber_step"]
LINEAR_GLAUBER_STEP = sys.modules["ggm_kernels.triton.linear_glauber_step"]
TORCH_DTYPES = {"*fp32": torch.float32, "*bf16": torch.bfloat16, "*fp16": torch.float16}
COMPILES_ALL = len(sys.argv) > 2
DTYPES = list(TORCH_DTYPES) if COMPILES_ALL else ["*bf16"]
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compiles(kernel, arch: int, arguments: dict, most_spilled: int = 0, **options) -> None:
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
    registers, spilled = resources(binary.asm["cubin"])
    assert spilled <= most_spilled, (
        kernel.__name__,
        arguments,
        f"{registers} registers, {spilled} bytes spilled",
    )
    print(kernel.__name__, registers)
    if COMPILES_ALL:
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


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes that it keeps in memory for want of them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", said))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


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
    blocks = [1024, COMMIT._MAX_BLOCK] if COMPILES_ALL else [1024]
    for dtype, everything, noises, block in itertools.product(DTYPES, flags, flags, blocks):
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
            "STEP_IS_POINTER": everything, "NOISES_REST": noises, "STREAM": COMMIT._STREAM, "BLOCK": block,
        }  # fmt: skip
        # All that may be asked for by row, of rows of thousands: seldom, and what is spilled stays in the first cache.
        most_spilled = 160 if everything and block > 2048 else 0
        compiles(COMMIT._commit_kernel, arch, arguments, most_spilled, num_warps=COMMIT.warps_of(block))


def strides(*names: str) -> dict:
    return {f"{name}{suffix}": "i32" for name in names for suffix in ("_row_stride", "_stride")}


def linear_cross_entropy_kernels(arch: int) -> None:
    for dtype, optional in itertools.product(["*fp32", "*bf16"], [True, False]):
        tile = {
            "products_ptr": dtype, "row_stride": "i64", "tokens": "i32", "begin": "i32",
            "bias_ptr": "*fp32" if optional else None, "softcap": "fp32", "targets_ptr": "*i64",
            "shift_ptr": "*fp32" if optional else None, "shifted_ptr": "*i64" if optional else None,
        }  # fmt: skip
        block = {"TOKENS": CROSS_ENTROPY._TOKENS}
        sums = {"top_ptr": "*fp32", "mass_ptr": "*fp32", "target_logit_ptr": "*fp32"}
        compiles(CROSS_ENTROPY._sums_kernel, arch, {**tile, **sums, **block})
        names = ("top_ptr", "log_mass_ptr", "softmax_scale_ptr", "target_scale_ptr")
        compiles(CROSS_ENTROPY._gradients_kernel, arch, {**tile, **dict.fromkeys(names, "*fp32"), **block})
        bias = {
            "gradients_ptr": dtype, "row_stride": "i64", "rows": "i32", "tokens": "i32", "bias_ptr": "*fp32",
            "TOKENS": CROSS_ENTROPY._BIAS_TOKENS,
        }  # fmt: skip
        compiles(CROSS_ENTROPY._bias_kernel, arch, bias)


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
            "shared_ptr": "*fp32" if optional else None,
            "out_ptr": dtype, "rows": "i32", "vocab_size": "i32", "COUNT": 3, "HIDDEN_SIZE": 768,
            "ROWS": SIGMOID_BCE._ROWS, "COLUMNS": 512,
        }  # fmt: skip
        compiles(SIGMOID_BCE._hidden_kernel, arch, hidden)
        token = {
            "grad_f_ptr": "*fp32", "hidden_ptr": dtype, **strides("hidden"), "tokens_ptr": "*i64",
            "order_ptr": "*i64", "places_ptr": "*i64" if optional else None,
            "shared_weight_ptr": "*fp32" if optional else None,
            "shared_bias_ptr": "*fp32" if optional else None, "grad_weight_ptr": dtype, "grad_bias_ptr": dtype if optional else None,
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
    shared_sigmoid_bce_kernels(arch)


def shared_sigmoid_bce_kernels(arch: int) -> None:
    for dtype, optional in itertools.product(DTYPES, [True, False]):
        tile = {
            "logits_ptr": "*fp32", "row_stride": "i32", "bias_ptr": "*fp32" if optional else None,
            "offset_ptr": "*fp32" if optional else None, "weight_ptr": "*fp32",
        }  # fmt: skip
        block = {"rows": "i32", "columns": "i32", "ROWS": SHARED._ROWS, "COLUMNS": SHARED._COLUMNS}
        gradient = {"row_gradient_ptr": "*fp32", "out_ptr": dtype, "out_row_stride": "i32"}
        compiles(SHARED._gradient_kernel, arch, tile | gradient | block)
        if dtype == DTYPES[0]:  # it reads float32 alone
            compiles(SHARED._loss_kernel, arch, tile | {"sums_ptr": "*fp64"} | block)


def step_rows(everything: bool, dtype: str, aligned: str) -> dict:
    """Where rows and their logits are, and how logits count: with every optional argument, by row, or none."""
    return {
        "tokens_ptr": "*i32" if everything else "*i64", "token_batch_stride": "i32", "token_stride": 1,
        "length": "i32", "positions_ptr": "*i32" if everything else "*i64", "position_batch_stride": "i32",
        "position_stride": "i64" if everything else 1, "frozen_ptr": "*i1" if everything else None,
        "count": "i32", "vocab_size": "i32", "first_row": "i32", "rows": "i32", "logits_ptr": dtype,
        "batch_stride": "i64" + aligned, "row_stride": "i32" + aligned, "vocab_stride": 1,
        **by_row("temperature", everything, "fp32"), "softcap": "fp32" if everything else None,
        **(by_row("shift", True, "fp32") if everything else absent("shift")),
    }  # fmt: skip


def by_row(name: str, is_tensor: bool, dtype: str) -> dict:
    """A value by row, or a number."""
    stride = "i32" if is_tensor else 0
    return {name: "*" * is_tensor + dtype, f"{name}_batch_stride": stride, f"{name}_row_stride": stride}


def absent(name: str) -> dict:
    return {name: None, f"{name}_batch_stride": 0, f"{name}_row_stride": 0}


def step_shapes(dtypes, shapes):
    """Types of logits, shapes of tiles, everything or nothing, filters or none; one half type is enough but for one."""
    shapes = shapes if COMPILES_ALL else shapes[:1]
    for dtype, shape, everything, filtered in itertools.product(dtypes, shapes, [True, False], [True, False]):
        if dtype == "*fp16" and not everything:
            continue
        yield dtype, shape, everything, filtered


def glauber_step_kernels(arch: int) -> None:
    # Rows times columns: many tokens; few tokens, where a program takes many rows.
    for dtype, (rows, block), everything, filtered in step_shapes(DTYPES, [(4, 1024), (128, 4)]):
        aligned = ":16" if block == 1024 else ""
        limits = dict.fromkeys(("top_ptr", "threshold_ptr"), "*fp32" if filtered else None)
        sums = {
            **step_rows(everything, dtype, aligned), **limits, "sums_ptr": "*fp32", "slots": "i32",
            "WANTS_RAW": everything, "WANTS_ENTROPY": everything, "ROWS": rows, "BLOCK": block,
        }  # fmt: skip
        compiles(GLAUBER_STEP.sums_kernel, arch, sums, num_warps=GLAUBER_STEP._WARPS)
        if not filtered:
            continue
        threshold = {
            **step_rows(everything, dtype, aligned), **limits, **by_row("top_k", everything, "i64"),
            **rename(by_row("top_p", everything, "i64"), "top_p", "top_p_units"),
            **rename(by_row("min_p", everything, "fp32"), "min_p", "log_min_p"),
            "TOP_P_FIRST": everything, "ROWS": max(1, rows // 2), "BLOCK": 2048 if block == 1024 else block,
        }  # fmt: skip
        compiles(GLAUBER_STEP.threshold_kernel, arch, threshold, num_warps=GLAUBER_STEP._WARPS)
    # A group in one slot or in 16, a small vocabulary, or as many groups at once as there ever are.
    shapes = [(2, 1024, 1024, 64, 1), (2, 1024, 64, 32, 16), (128, 4, 4, 4, 1), (2, 1024, 1024, 512, 1)]
    for dtype, (rows, block, slot, groups, parts), everything, filtered in step_shapes(DTYPES, shapes):
        settle = {
            **step_rows(everything, dtype, ""), **dict.fromkeys(("top_ptr", "threshold_ptr"), "*fp32" if filtered else None),
            "sums_ptr": "*fp32", "slots": "i32", **settle_options(everything),
            "NORMALIZE": everything, "RAW_IS_LAW": not everything, "ROWS": rows, "BLOCK": block, "SLOT": slot,
            "GROUPS": groups, "PARTS": parts,
        }  # fmt: skip
        compiles(GLAUBER_STEP.settle_kernel, arch, settle, num_warps=GLAUBER_STEP._WARPS)


def rename(arguments: dict, old: str, new: str) -> dict:
    return {new if name == old else name: value for name, value in arguments.items()}


def settle_options(everything: bool) -> dict:
    optional = "*fp32" if everything else None
    by_products = ("log_sum_exp", "log_prob", "keep_prob", "raw_log_prob", "entropy", "margin")
    return {
        "sample_ids_ptr": "*i64" if everything else None, "seed": "*i64" if everything else "i32",
        "seed_stride": "i32" if everything else 0, "step": "*i64" if everything else "i32",
        "step_stride": "i32" if everything else 0,
        **(by_row("rate", True, "fp32") if everything else absent("rate")),
        **(by_row("mixture", True, "fp32") if everything else absent("mixture")), "noise_log_probs_ptr": optional,
        "uniform_log_prob": "fp32", "token_bound": "i32", "noise_table_ptr": "*i32" if everything else None,
        "noise_mask": None, **{f"{name}_ptr": optional for name in by_products},
        "argmax_ptr": "*i64" if everything else None,
    }  # fmt: skip


def linear_glauber_step_kernels(arch: int) -> None:
    for dtype, block_rows, everything, _ in step_shapes(DTYPES, [16, 64]):
        if dtype == "*fp16" and block_rows == 16:
            continue
        block_rows = min(block_rows, LINEAR_GLAUBER_STEP._FUSED_BLOCK_ROWS[TORCH_DTYPES[dtype]])
        arguments = {
            **step_rows(everything, dtype, ":16"), "hidden_ptr": dtype, "hidden_batch_stride": "i32:16",
            "hidden_row_stride": "i32:16", "hidden_stride": 1, "weight_ptr": dtype,
            "weight_row_stride": "i32:16", "weight_stride": 1,
            "bias_ptr": dtype if everything else None, "bias_stride": 1, "sums_ptr": "*fp32", "slots": "i32",
            "WANTS_RAW": everything, "WANTS_ENTROPY": everything, "HIDDEN_SIZE": 768,
            "ROWS": block_rows, "BLOCK": LINEAR_GLAUBER_STEP._FUSED_TOKENS,
            "COLUMNS": LINEAR_GLAUBER_STEP._FUSED_COLUMNS[TORCH_DTYPES[dtype]],
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
    linear_cross_entropy_kernels(int(sys.argv[1]))
    glauber_step_kernels(int(sys.argv[1]))
    linear_glauber_step_kernels(int(sys.argv[1]))
