"""Two checkouts side by side: what a change did to calls that do not ask for it.

    python -m benchmarks.checkouts OTHER [--rounds 5] [--seconds 4] [--threads 2]

OTHER is another checkout, its core built for this interpreter: `python setup.py build_ext --inplace`. Both
are timed in turns, each time in a process of its own, and of each call the least time counts: other work on a
machine adds to times, and never takes from them. A ratio above 1: the call is faster here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
VOCAB_SIZE, HIDDEN_SIZE = 50257, 768
SMALL_SIZES = [(1, 100), (64, 4), (64, 27)]  # rows, vocabulary


def calls() -> dict[str, Callable[[], object]]:
    """Calls of the first edition, without an option of any later one."""
    import torch

    import ggm_kernels as kernels

    def rows_of(count: int, logits: torch.Tensor) -> tuple:
        return torch.zeros(1, count, dtype=torch.int64), logits, torch.arange(count)

    coordinates = {"seed": 1, "step": 0}
    hidden, weight = torch.randn(256, HIDDEN_SIZE), torch.randn(VOCAB_SIZE, HIDDEN_SIZE) * 0.05
    tokens, logits, positions = rows_of(256, (hidden @ weight.T)[None])
    step = partial(kernels.glauber_step, **coordinates)
    linear_step = partial(kernels.linear_glauber_step, tokens, hidden[None], weight, positions, **coordinates)
    clean, keep_prob = torch.randint(VOCAB_SIZE, (64, 1024)), torch.rand(64)
    corrupt = partial(kernels.corrupt, vocab_size=VOCAB_SIZE, seed=1)
    return {
        "glauber_step, N=256 V=50257": partial(step, tokens, logits, positions),
        "glauber_step, top-p, N=256 V=50257": partial(step, tokens, logits, positions, top_p=0.9),
        "linear_glauber_step, N=256": linear_step,
        "linear_glauber_step, keep or replace": partial(linear_step, noise_rate=torch.full((1,), 1e-3)),
        "corrupt, B=64 L=1024": partial(corrupt, clean, keep_prob),
        "corrupt, B=1 L=1024": partial(corrupt, clean[:1].clone(), keep_prob[:1].clone()),
        **{
            f"glauber_step, N={count} V={size}": partial(step, *rows_of(count, torch.randn(1, count, size)))
            for count, size in SMALL_SIZES
        },
    }


def least_times(checkout: Path, seconds: float, threads: int) -> dict[str, float]:
    """The least time of every call, in seconds; `ggm_kernels` is to be imported from the checkout."""
    import torch

    import ggm_kernels

    assert Path(ggm_kernels.__file__).is_relative_to(checkout), ggm_kernels.__file__
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    timed = calls()
    least = dict.fromkeys(timed, float("inf"))
    for call in timed.values():
        call()
    for name, call in timed.items():
        end = time.perf_counter() + seconds / len(timed)
        while time.perf_counter() < end:
            start = time.perf_counter()
            call()
            least[name] = min(least[name], time.perf_counter() - start)
    return least


def times_of(checkout: Path, seconds: float, threads: int) -> dict[str, float]:
    """`least_times` of a checkout, in a process of its own."""
    numbers = ["--seconds", str(seconds), "--threads", str(threads)]
    command = [sys.executable, "-P", __file__, str(checkout), "--child", *numbers]
    environment = {"GOMP_SPINCOUNT": "10000", **os.environ, "PYTHONPATH": str(checkout)}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)


def compare(other: Path, rounds: int, seconds: float, threads: int) -> dict[str, tuple[float, float]]:
    """Least seconds of every call: there, and here."""
    seen: dict[Path, list[dict[str, float]]] = {other: [], HERE: []}
    for _ in range(rounds):
        for checkout, times in seen.items():
            times.append(times_of(checkout, seconds, threads))
    there, here = ({name: min(t[name] for t in times) for name in times[0]} for times in seen.values())
    return {name: (there[name], here[name]) for name in here}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each call."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkouts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if not (given.other / "ggm_kernels").is_dir():
        parser.error(f"other: got {given.other}; allowed: the root of a checkout")
    if given.child:
        print(json.dumps(least_times(given.other, given.seconds, given.threads)))
        return
    for name, (there, here) in compare(
        given.other.resolve(), given.rounds, given.seconds, given.threads
    ).items():
        print(
            f"{name:38}  there {there * 1e6:10.1f} us  here {here * 1e6:10.1f} us  ratio {there / here:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
