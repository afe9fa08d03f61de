"""Faults to be planted in csrc/cuda, and how the emulated module or program is built with one of them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from build_native.emulated import Plan
from build_native.toolchain import find_cxx

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Fault:
    """One edit of a file of csrc/cuda: what it is, which source must be compiled anew, which check must see it."""

    kind: str
    file: str
    right: str
    wrong: str
    seen_by: str
    source: str = ""

    @property
    def compiled(self) -> str:
        return self.source or self.file

    def __str__(self) -> str:
        return f"{self.kind}, {self.file}"


FAULTS = [
    Fault(
        "missing barrier",
        "threshold.cu",
        "limit, are_held, collects);\n    __syncthreads();\n",
        "limit, are_held, collects);\n",
        "check_filters",
    ),
    Fault("missing barrier", "threshold.cu", "  __syncthreads();  // also", "  // also", "tsan"),
    Fault(
        "divergent barrier",
        "threshold.cu",
        "    choose_digit(shared, weight, round == 0);\n    __syncthreads();\n",
        "    choose_digit(shared, weight, round == 0);\n    if (threadIdx.x < kWarp) __syncthreads();\n",
        "rendezvous: deadlock|ends while others wait|while others wait at",
    ),
    Fault(
        "divergent barrier",
        "threshold.cu",
        "    if (early_of<T>(",
        "    if (threadIdx.x >= kWarp) return;\n    if (early_of<T>(",
        "rendezvous: after others have ended|ends while others wait",
    ),
    Fault("uncleared shared memory", "threshold.cu", "    clear(shared.histogram);\n", "", "check_filters"),
    Fault(
        "candidates without room",
        "threshold.cu",
        "are_held = shared.found <= kMostCandidates;",
        "are_held = true;",
        "check_filters",
    ),
    Fault(
        "candidates of another digit",
        "threshold.cu",
        "prefix.holds(depth) ? weight.of(z) : 0",
        "weight.of(z)",
        "check_filters",
    ),
    Fault(
        "out of bounds",
        "glauber_rows.h",
        "  if (at + Chunk<T>::kSize > end) {",
        "  if (at >= end) {",
        "asan",
        "threshold.cu",
    ),
    Fault(
        "out of bounds",
        "sigmoid_bce.cu",
        "  return token >= 0 && token < args.vocab_size;",
        "  return token >= 0;",
        "asan",
    ),
    Fault(
        "out of bounds",
        "glauber_group.h",
        "group_end + Held::kSize <= end",
        "group_end <= end",
        "asan",
        "glauber_step.cu",
    ),
    Fault(
        "wrong half of a shift",
        "glauber_group.h",
        "high = load_aligned<T>(floor + 16)",
        "high = load_aligned<T>(floor)",
        "check_addresses",
        "glauber_step.cu",
    ),
    Fault(
        "wrong word",
        "glauber_draw.h",
        "words_of(row.race, kGroupStream, ",
        "words_of(row.race, kRaceStream, ",
        "check_steps",
        "glauber_step.cu",
    ),
    Fault(
        "wrong word",
        "glauber_draw.h",
        "static_cast<uint32_t>(row.logits.token_begin / kRaceGroup) + n",
        "n",
        "check_tiles",
        "glauber_step.cu",
    ),
    Fault(
        "mass of other tokens",
        "glauber_draw.h",
        "tempered(record.top, top, row.law.inverse_temperature) + logf(record.law_mass)",
        "0.0f * top + logf(record.law_mass)",
        "check_steps",
        "glauber_step.cu",
    ),
    Fault(
        "mass of other tokens",
        "glauber_group.h",
        ">= law.threshold ? power : 0.0f",
        ">= law.threshold ? power : power",
        "check_filters",
        "glauber_step.cu",
    ),
    Fault(
        "32-bit product",
        "sigmoid_bce.cu",
        "static_cast<const T*>(args.weight) + token * args.weight_stride;\n        float f",
        "static_cast<const T*>(args.weight) + static_cast<int>(token * args.weight_stride);\n        float f",
        "check_strides_beyond_32_bits",
    ),
    Fault(
        "32-bit product",
        "glauber_rows.h",
        "i % tile.group * tile.row_stride;",
        "static_cast<int>(i % tile.group * tile.row_stride);",
        "check_strides_beyond_32_bits",
        "glauber_step.cu",
    ),
    Fault(
        "no barrier",
        "linear_cross_entropy.cu",
        "of_warps[threadIdx.x / kWarp] = sum;\n    __syncthreads();\n",
        "of_warps[threadIdx.x / kWarp] = sum;\n",
        "check_cross_entropy",
    ),
    Fault(
        "mass of other tokens",
        "linear_cross_entropy.cu",
        "sum.mass * expf(sum.top - logit) + 1.0f",
        "sum.mass + 1.0f",
        "check_cross_entropy",
    ),
    Fault(
        "duplicate write",
        "sigmoid_bce.cu",
        "gradients.bias != nullptr && threadIdx.x == 0",
        "gradients.bias != nullptr",
        "tsan",
    ),
    Fault(
        "duplicate write",
        "sigmoid_bce.cu",
        "logit < 0 || (first > 0 && entries[first - 1] == logit)",
        "logit < 0",
        "check_losses",
    ),
    Fault(
        "wrong mask",
        "threshold.cu",
        "__shfl_up_sync(kAllLanes, upto",
        "__shfl_up_sync(0x0000FFFFu, upto",
        "rendezvous: no lane of the mask|names lanes that wait with another mask",
    ),
    Fault(
        "wrong mask",
        "glauber_rows.h",
        "larger_or_nan(value, __shfl_xor_sync(kAllLanes, value, distance))",
        "larger_or_nan(value, __shfl_xor_sync(kAllLanes >> 1, value, distance))",
        "rendezvous: no lane of the mask",
        "threshold.cu",
    ),
    Fault(
        "wrong lane",
        "threshold.cu",
        "if (lane == kWarp - 1) shared.weight_of_warp",
        "if (lane == 0) shared.weight_of_warp",
        "check_filters",
    ),
    Fault(
        "wrong lane",
        "sigmoid_bce.cu",
        "for (int distance = width / 2; distance > 0; distance /= 2) value +=",
        "for (int distance = width / 4; distance > 0; distance /= 2) value +=",
        "check_losses",
    ),
    Fault(
        "lost term",
        "shared_sigmoid_bce.cu",
        "  if (tile.bias != nullptr) f += tile.bias[column];\n",
        "",
        "check_losses",
    ),
    Fault(
        "what is shared is dropped",
        "sigmoid_bce.cu",
        "start_sums<kSize>(sums, place < 0 ? nullptr : gradients.shared_weight, place * args.hidden_size + i);",
        "start_sums<kSize>(sums, nullptr, 0);",
        "check_losses",
    ),
    Fault(
        "grid without a loop",
        "sigmoid_bce.cu",
        "  for (; first < args.rows; first += stride) {",
        "  if (first < args.rows) {",
        "check_losses",
    ),
]


def build(fault: Fault, variant: str, folder: Path) -> Path:
    """The module of a variant, or its program where it has one, with a fault; the rest is as it was built."""
    plan = Plan(ROOT, find_cxx(os.environ), variant)
    product = plan.products()[-1]
    original = (ROOT / "csrc/cuda" / fault.file).read_text()
    assert original.count(fault.right) == 1, (
        f"{fault}: the place is there {original.count(fault.right)} times"
    )
    planted = folder / "csrc/cuda"
    planted.mkdir(parents=True)
    (planted / fault.file).write_text(original.replace(fault.right, fault.wrong))
    if fault.compiled != fault.file:
        (planted / fault.compiled).write_text((ROOT / "csrc/cuda" / fault.compiled).read_text())
    target = folder / f"{Path(fault.compiled).stem}.cuda.o"
    flags = [f"-I{folder}/csrc", *plan.device_flags(), "-O0", "-w"]
    run([*plan.cxx.command, *flags, "-c", str(planted / fault.compiled), "-o", str(target)])
    objects = dict(plan.device_objects())
    objects[Path("csrc/cuda", fault.compiled)] = target
    linked = [*plan.host_objects(product), *objects.values()]
    run([*plan.cxx.command, *map(str, linked), "-o", str(folder / product.name), *plan.link_flags(product)])
    return folder / product.name


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
