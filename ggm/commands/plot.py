"""`ggm plot`: how a run went, as a picture."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggm.commands.flags import Flags


@dataclass(frozen=True)
class PlotOptions:
    """Draw the losses and the speed of a run.

        ggm plot outputs/pydoc-char

    The picture shows the training loss, of every step and smoothed, the loss on held-out data, a mark at the
    best checkpoint, and tokens per second, all over steps: what metrics.jsonl holds. The run may still go on.

    Attributes
    ----------
    run : Path
        Folder of `ggm train`.
    out : Path or None
        PNG file (default: plot.png in the folder).
    """

    run: Path
    out: Path | None = None


FLAGS = (Flags(PlotOptions),)
_INK, _FAINT, _HELD_OUT = "#1b2a41", "#b9c4d6", "#c1440e"
# The smoothed curve is a mean over this share of the steps, or so many.
_WINDOW, _LEAST_WINDOW = 0.02, 10


def run(options: argparse.Namespace) -> None:
    """Draw and tell where."""
    from ggm.files import check_replaceable, replacing

    folder = options.run
    lines = _lines(folder)
    path = options.out or folder / "plot.png"
    check_replaceable("out", path)
    figure = draw(lines, title=folder.resolve().name, best=_best_step(folder))
    with replacing(path) as aside:
        figure.savefig(aside, format=path.suffix.removeprefix(".") or "png")  # or it adds an ending
    print(f"{len(lines)} steps: {path}")


def _lines(folder: Path) -> list[Mapping[str, Any]]:
    from ggm.training.metrics import read_metrics

    path = folder / "metrics.jsonl"
    lines = list(read_metrics(path))
    if not lines:
        raise FileNotFoundError(f"{folder}: no steps in {path.name}; allowed: the folder of a run")
    return lines


def _best_step(folder: Path) -> int | None:
    from ggm.training.checkpoints import Checkpoints, read_progress

    best = Checkpoints(folder / "checkpoints", keep=1).best()
    return None if best is None else read_progress(best)[0]


def draw(lines: Sequence[Mapping[str, Any]], *, title: str, best: int | None = None) -> Any:
    """Figure of a run.

    Parameters
    ----------
    lines : sequence of mapping
        Of `ggm.training.metrics.read_metrics`, at least one.
    title : str
        Stands above it.
    best : int, optional
        Step of the best checkpoint.

    Returns
    -------
    matplotlib.figure.Figure
        One panel of losses, and one of tokens per second, if they are known (runs of earlier versions do
        not tell them).
    """
    from ggm.extras import require

    looks = [line for line in lines if "held_out_loss" in line]
    timed = [line for line in lines if "tokens_per_second" in line]
    figure = require("matplotlib.figure", extra="train").Figure(figsize=(8, 6), dpi=130, layout="constrained")
    panels = figure.subplots(
        2 if timed else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 1][: 1 + bool(timed)]
    )
    figure.suptitle(title, color=_INK)
    losses = panels[0, 0]
    steps, values = [line["step"] for line in lines], [line["loss"] for line in lines]
    losses.plot(steps, values, color=_FAINT, linewidth=0.8, label="training loss, each step")
    window = max(_LEAST_WINDOW, round(_WINDOW * len(values)))
    losses.plot(steps, smoothed(values, window), color=_INK, label=f"training loss, mean of {window} steps")
    if looks:
        held_out = [line["held_out_loss"] for line in looks]
        losses.plot([line["step"] for line in looks], held_out, color=_HELD_OUT, label="held-out loss")
    if best is not None:
        losses.axvline(best, color=_HELD_OUT, linestyle=":", label=f"best checkpoint: step {best}")
    losses.set_ylabel("loss per predicted token")
    losses.set_ylim(*_limits(values, looks))
    losses.legend(frameon=False)
    if timed:
        speed = [line["tokens_per_second"] for line in timed]
        panels[1, 0].plot([line["step"] for line in timed], speed, color=_INK)
        panels[1, 0].set_ylabel("tokens per second")
        panels[1, 0].set_ylim(bottom=0)
    panels[-1, 0].set_xlabel("step")
    for panel in panels.flat:
        panel.grid(color="#e6e9ef")
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and of those before it, `window` in all where there are as many."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    starts = (max(0, end - window) for end in range(1, len(sums)))
    return [(sums[end] - sums[start]) / (end - start) for end, start in enumerate(starts, start=1)]


def _limits(values: Sequence[float], looks: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """From the least loss to what most steps are below: the first few are far above all others."""
    every = sorted([*values, *(line["held_out_loss"] for line in looks)])
    low, high = every[0], every[min(len(every) - 1, int(0.99 * len(every)))]
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin
