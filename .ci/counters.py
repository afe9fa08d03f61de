"""Counts of what the CUDA kernels do, as they run emulated: bytes, logarithms, votes, barriers.

Usage: ``counters.py write`` makes ``.ci/counters.json`` anew, and of it the table in ``docs/gpu-notes.md``.
``counters.py check`` counts, compares with that file and says what grew. Both want the build that counts
accesses: ``python -m build_native.emulated device``, and its module in ``GGM_KERNELS_EMULATED``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / ".ci")]

import torch  # noqa: E402
from page_tables import replace_table  # noqa: E402

from ggm_kernels import (  # noqa: E402
    NoiseLaw,
    commit,
    corrupt,
    glauber_step,
    linear_cross_entropy,
    linear_glauber_step,
    linear_sigmoid_bce,
    sigmoid_bce,
)
from ggm_kernels.native import glauber_step_cuda  # noqa: E402
from ggm_kernels.native.compiled import emulated as module  # noqa: E402

REPORT = ROOT / ".ci" / "counters.json"
PAGE = ROOT / "docs" / "gpu-notes.md"
SECTOR = 32  # bytes
TOLERANCE = 1.01  # libraries' logarithms and exponentials differ in the last bit, and with them who may win
ROWS, VOCAB_SIZE = 24, 50257
BACKEND = "emulated"

# What each kernel of a case is counted for, a row (of corrupt: a position), and how the page calls it. Of the
# iterations that a warp may skip by a vote, those that it does not skip are slow.
COSTS = {
    "bytes_read": "bytes read",
    "passes": "passes",
    "bytes_written": "bytes written",
    "logarithms": "logarithms",
    "exponentials": "exponentials",
    "slow": "slow iterations",
    "atomics": "atomics",
    "barriers": "barriers",
}
SUMMED = ("bytes_read", "bytes_written", "logarithms", "exponentials", "atomics", "barriers")
Counts = dict[str, dict[str, float]]


def main() -> int:
    """Write the report or hold the kernels against it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("write", "check"))
    what = parser.parse_args().what
    if module is None:
        parser.error("GGM_KERNELS_EMULATED: got no module; allowed: that of build_native.emulated device")
    found = {name: count(rows, run) for name, rows, run in cases()}
    if not found["glauber_step"]["group_kernel"]["bytes_read"]:
        parser.error("GGM_KERNELS_EMULATED: got a build that counts no bytes; allowed: the variant device")
    if what == "write":
        REPORT.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(replace_table(PAGE.read_text(), REPORT.name, table(found)))
        return 0
    worse = compare(json.loads(REPORT.read_text()), found)
    print(*worse, sep="\n", file=sys.stderr)
    print(f"{len(found)} cases counted: {len(worse) or 'nothing'} worse than {REPORT.name} says")
    return 1 if worse else 0


def count(rows: int, run: Callable[[], object]) -> Counts:
    """What one call spends, by kernel, a row."""
    module.take_counts()
    run()
    totals: Counts = {}
    for name, counts in module.take_counts().items():
        kernel = totals.setdefault(name.split("<")[0], dict.fromkeys(counts, 0))
        for what, value in counts.items():
            kernel[what] += value
    return {name: per_row(kernel, rows) for name, kernel in totals.items()}


def per_row(kernel: dict[str, float], rows: int) -> dict[str, float]:
    """What the page shows: totals a row, bytes read over those of different sectors, votes won over all."""
    counts = {what: round(kernel[what] / rows, 2) for what in SUMMED}
    counts["passes"] = share(kernel["bytes_read"], kernel["sectors_read"] * SECTOR)
    counts["slow"] = share(kernel["votes_won"], kernel["votes"])
    return {what: counts[what] for what in COSTS}


def share(part: float, whole: float) -> float:
    """0 of nothing."""
    return round(part / whole, 3) if whole else 0.0


def compare(before: dict[str, Counts], now: dict[str, Counts]) -> list[str]:
    """What grew, a line each."""
    lines = []
    for name in before.keys() | now.keys():
        old, new = before.get(name, {}), now.get(name, {})
        if old.keys() != new.keys():
            lines.append(f"{name}: kernels {sorted(old)} -> {sorted(new)}: python .ci/counters.py write")
            continue
        for kernel, counts in new.items():
            for what, value in counts.items():
                if value > old[kernel][what] * TOLERANCE + 1e-9:
                    lines.append(f"{name}: {kernel}: {COSTS[what]} {old[kernel][what]} -> {value}")
    return sorted(lines)


def table(report: dict[str, Counts]) -> list[str]:
    """Lines of the page's table."""
    lines = [f"| call | kernel | {' | '.join(COSTS.values())} |", f"| --- | --- |{' ---: |' * len(COSTS)}"]
    for name, kernels in report.items():
        for kernel, counts in kernels.items():
            values = [shown(what, counts[what]) for what in COSTS]
            lines.append(f"| {name} | {kernel.removesuffix('_kernel')} | {' | '.join(values)} |")
    return lines


def shown(what: str, value: float) -> str:
    """A count as the page writes it; nothing where there is none."""
    if value == 0:
        return ""
    formats = {"slow": "{:.0%}", "passes": "{:.1f}"}
    return formats.get(what, "{:,.0f}").format(value).replace("%", " %")


def cases() -> Iterator[tuple[str, int, Callable[[], object]]]:
    """A name, rows, and a call of them."""
    yield from corrupt_cases()
    yield from loss_cases()
    yield from step_cases()
    yield from commit_cases()


def corrupt_cases() -> Iterator[tuple[str, int, Callable[[], object]]]:
    """All noises, tokens of 8 bytes."""
    tokens, keep_prob = integers(300, 4, 1024), torch.full((4,), 0.5)
    probs = torch.arange(1, 301, dtype=torch.float64)
    laws = {
        "uniform": None,
        "alias table": NoiseLaw((probs / probs.sum()).float()),
        "absorbing": NoiseLaw.absorbing(300, 7),
    }
    for name, law in laws.items():
        yield (
            f"corrupt, {name}",
            tokens.numel(),
            lambda law=law: corrupt(tokens, keep_prob, 300, seed=1, noise=law, backend=BACKEND),
        )


def loss_cases() -> Iterator[tuple[str, int, Callable[[], object]]]:
    """One candidate a row of bfloat16, width 768; many from logits."""
    hidden, weight = normal(256, 768).bfloat16(), normal(512, 768).bfloat16()
    candidates, signal = integers(512, 256), torch.full((256,), 0.5)
    noise = torch.full((256,), 0.5)
    yield (
        "linear_sigmoid_bce, C = 1",
        256,
        lambda: linear_sigmoid_bce(hidden, weight, candidates, signal, noise, backend=BACKEND),
    )

    def train() -> None:
        leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight)]
        linear_sigmoid_bce(*leaves, candidates, signal, noise, backend=BACKEND).sum().backward()

    yield "forward and backward", 256, train
    many = integers(512, 256, 8)
    logits = normal(256, 512).bfloat16()
    yield "sigmoid_bce, C = 8", 256, lambda: sigmoid_bce(logits, many, 0.5, 0.5, backend=BACKEND)
    yield from shared_cases(normal(256, 64).bfloat16(), normal(4096, 64).bfloat16())


def shared_cases(
    hidden: torch.Tensor, weight: torch.Tensor
) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """What lies between the library's products: columns that all rows share, a whole vocabulary."""
    rows, vocab_size = len(hidden), len(weight)
    target, shared = integers(vocab_size, rows), torch.arange(0, vocab_size, 4)

    def shared_noise() -> None:
        leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight)]
        loss = linear_sigmoid_bce(
            *leaves, target[:, None], 1.0, 0.0, shared_candidates=shared, shared_weight=0.5, backend=BACKEND
        )
        loss.sum().backward()

    def cross_entropy() -> None:
        leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight)]
        linear_cross_entropy(*leaves, target, reduction="sum", backend=BACKEND).backward()

    yield f"linear_sigmoid_bce, {len(shared)} shared, forward and backward", rows, shared_noise
    yield f"linear_cross_entropy, V = {vocab_size}, forward and backward", rows, cross_entropy


def step_cases() -> Iterator[tuple[str, int, Callable[[], object]]]:
    """bfloat16, normal logits of deviation 2 but where a name says otherwise."""
    logits = (2 * normal(1, ROWS, VOCAB_SIZE)).bfloat16()
    yield step_case("glauber_step", logits)
    yield step_case("deviation 4", (2 * logits))
    yield step_case("deviation 1/2", (logits / 4))
    yield step_case("float32", logits.float())
    yield step_case("V = 1024", logits[:, :, :1024].contiguous())
    by_products = ("log_sum_exp", "raw_log_prob", "entropy", "margin")
    yield step_case("with by-products", logits, **{name: torch.zeros(1, ROWS) for name in by_products})
    yield step_case("top-k of 50", logits, top_k=50)
    yield step_case("top-p of 0.9", logits, top_p=0.9)
    yield step_case("top-k, then top-p", logits, top_k=50, top_p=0.9)
    yield step_case("top-p, then top-k", logits, top_k=50, top_p=0.9, filter_order="p_k_min")
    hidden, weight = normal(1, ROWS, 16).bfloat16(), (normal(VOCAB_SIZE, 16) / 2).bfloat16()

    def step() -> None:
        with buffer_of(ROWS * 13 * 1024 * 2):
            tokens = torch.zeros(1, ROWS, dtype=torch.int64)
            linear_glauber_step(tokens, hidden, weight, torch.arange(ROWS), seed=1, step=0, backend=BACKEND)

    yield "linear_glauber_step, 4 tiles", ROWS, step


def step_case(name: str, logits: torch.Tensor, **options) -> tuple[str, int, Callable[[], object]]:
    """A step of all rows."""
    rows = logits.shape[1]
    tokens = torch.zeros(1, rows, dtype=torch.int64)
    return (
        name,
        rows,
        lambda: glauber_step(tokens, logits, torch.arange(rows), seed=1, step=0, backend=BACKEND, **options),
    )


def commit_cases() -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Scores of a sequence of 1024."""
    tokens, proposal, score = integers(300, 4, 1024), integers(300, 4, 1024), normal(4, 1024)
    for name, limit in (("count", {"count": 100}), ("budget", {"budget": 50.0})):
        yield (
            f"commit by {name}, L = 1024",
            4,
            lambda limit=limit: commit(
                tokens.clone(), proposal, score, seed=1, step=0, backend=BACKEND, **limit
            ),
        )


@contextmanager
def buffer_of(size: int) -> Iterator[None]:
    """A product's buffer of so many bytes."""
    before = glauber_step_cuda._BUFFER_BYTES
    glauber_step_cuda._BUFFER_BYTES = size
    try:
        yield
    finally:
        glauber_step_cuda._BUFFER_BYTES = before


def integers(bound: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """The same on every machine."""
    return torch.randint(bound, shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int) -> torch.Tensor:
    """All but normal, of deviation 1, by sums that are exact and so the same on every machine."""
    total = integers(256, *shape, 12).sum(-1)
    return (total - 12 * 127.5).float() / 256


if __name__ == "__main__":
    sys.exit(main())
