"""How much is run: tasks, budgets, seeds, samples."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.quality.systems import ABLATIONS, SYSTEMS

BUDGETS = ("seconds", "steps")


@dataclass(frozen=True)
class Preset:
    """A run of the bench.

    Attributes
    ----------
    tasks, systems : tuple of str
        Names.
    seeds : int
        0, 1, .., each a training of its own.
    budgets : tuple of str
        "seconds": equal time for all systems; "steps": equal steps, for the first seed.
    seconds, steps : float, int
        The budgets, of which each task has its share. Seconds are trained as the steps that they are enough
        for: each system's pace is measured once, on a CPU in time of one processor.
    learning_rate : float
        Of all systems.
    evaluations : tuple of int
        Network evaluations per sample, at temperature 1.
    temperatures : tuple of float
        Of the frontier of texts, at `frontier` evaluations.
    frontier : int
        Evaluations there.
    samples : int
        Per point.
    bound_times : int
        Times per sequence at which bounds are estimated.
    evaluator_seconds : float
        Training of the evaluator of texts.
    scale : int
        Factor of the networks' widths.
    """

    tasks: tuple[str, ...] = ("digits", "pydoc-char", "sudoku-4", "potts")
    systems: tuple[str, ...] = SYSTEMS
    seeds: int = 3
    budgets: tuple[str, ...] = BUDGETS
    seconds: float = 40.0
    steps: int = 400
    learning_rate: float = 3e-3
    evaluations: tuple[int, ...] = (4, 8, 16, 64)
    temperatures: tuple[float, ...] = (0.8, 0.9)
    frontier: int = 16
    samples: int = 256
    bound_times: int = 16
    evaluator_seconds: float = 240.0
    scale: int = 1

    def __post_init__(self) -> None:
        for name in (
            "seeds",
            "seconds",
            "steps",
            "learning_rate",
            "samples",
            "bound_times",
            "evaluator_seconds",
            "scale",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}; allowed: above 0")


# Of GGM the binary loss, and the rows of docs/choices.md that are best where networks are hollow, and plain.
SMALL_SYSTEMS = (
    *("ggm-hollow", "ggm-data-kept", "ggm-denoiser"),
    *("mdlm", "sedd-absorbing", "uniform", "autoregressive"),
)
PRESETS = {
    "small": Preset(systems=SMALL_SYSTEMS, budgets=("seconds",)),
    "gpu": Preset(
        tasks=("digits", "pydoc-char", "pydoc-bpe", "sudoku-4", "sudoku-9", "potts"),
        systems=(*SMALL_SYSTEMS, "sedd-uniform"),
        seeds=1,
        budgets=("seconds",),
        seconds=8.0,
        learning_rate=1e-3,
        evaluations=(4, 16, 64, 256, 1024),
        evaluator_seconds=40.0,
        scale=4,
    ),
    "ablations": Preset(
        tasks=("digits", "digits-noisy", "potts"), systems=tuple(ABLATIONS), seeds=1, budgets=("steps",)
    ),
    "smoke": Preset(
        tasks=("sudoku-4", "potts"),
        systems=("ggm-hollow", "mdlm", "autoregressive"),
        seeds=1,
        budgets=("seconds",),
        seconds=0.2,
        evaluations=(4,),
        temperatures=(0.8,),
        frontier=16,
        samples=16,
        bound_times=1,
        evaluator_seconds=0.2,
    ),
}
