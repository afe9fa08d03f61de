"""Pictures of the quality page: quality against evaluations, the frontier of texts, sheets of digits."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.plots import STYLE, plt
from benchmarks.quality.results import HEADLINES, Point, Results, rank

COLOURS = {
    "ggm-hollow": "#c8384e",
    "ggm-data": "#8f1d3f",
    "ggm-data-kept": "#b3261e",
    "ggm-denoiser": "#d06fa0",
    "ggm-masked": "#e58a5b",
    "mdlm": "#5b6b8c",
    "sedd-absorbing": "#3f8f8a",
    "sedd-uniform": "#6f8f3f",
    "uniform": "#b08d57",
    "autoregressive": "#222222",
}
# Of samplers; a system's own one is drawn through.
LINES = {
    "keep or replace": "--",
    "euler": "--",
    "redenoise": ":",
    "remasking": ":",
    "confidence": "-.",
    "confidence, redenoise": (0, (6, 1, 1, 1, 1, 1)),
}


def colour(system: str) -> str:
    """Colour of a system; grey for one without."""
    return COLOURS.get(system, "#8a94a6")


def draw_line(
    ax: Axes, system: str, sampler: str, x: Sequence[float], y: Sequence[float], label: str
) -> None:
    """Points of a sampler, in its system's colour."""
    style = LINES.get(sampler, "-")
    ax.plot(x, y, linestyle=style, marker="o", ms=4, color=colour(system), label=label)


def by_evaluations(results: Results, budget: str) -> Figure:
    """Headline of every task against the evaluations of a sample, a line per sampler."""
    tasks = results.tasks()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 4.0), squeeze=False)
        for ax, task in zip(axes[0], tasks, strict=True):
            headline = HEADLINES[task]
            for system, sampler, points in lines(results.points(task, budget)):
                x = [point.per_sample for point in points]
                y = [point.measures[headline.measure] for point in points]
                name = f"{system}, {sampler}"
                draw_line(ax, system, sampler, x, y, name)
            real = results.data[task]["measures"].get(headline.measure)
            if real is not None:
                ax.axhline(real, color="#bbbbbb", lw=1)
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if not headline.more:
                ax.set_yscale("log")
            ax.set_title(f"{task}: {'higher' if headline.more else 'lower'} is better", fontsize=10)
            ax.set_xlabel("network evaluations of a sample")
            ax.set_ylabel(headline.title, fontsize=9)
        named: dict[str, Artist] = {}  # a task may have samplers that others have not
        for ax in axes[0]:
            handles, names = ax.get_legend_handles_labels()
            named |= dict(zip(names, handles, strict=True))
        figure.legend(
            named.values(), named, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, fontsize=8
        )
        figure.tight_layout()
    return figure


def lines(points: list[Point]) -> list[tuple[str, str, list[Point]]]:
    """Points at temperature 1 of each sampler, from few evaluations to many."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in sorted(points, key=lambda point: (rank(point.system), point.evaluations)):
        if point.temperature == 1.0:
            found.setdefault((point.system, point.sampler), []).append(point)
    return [(system, sampler, group) for (system, sampler), group in found.items()]


def frontier(results: Results, task: str, budget: str) -> Figure:
    """Perplexity against entropy, a line over temperatures per sampler; held-out text is a star."""
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(6.5, 4.5))
        groups: dict[tuple[str, str, int], list[Point]] = {}
        for point in results.points(task, budget):
            groups.setdefault((point.system, point.sampler, point.evaluations), []).append(point)
        for (system, sampler, evaluations), group in groups.items():
            if len(group) > 1:
                group.sort(key=lambda point: point.temperature)
                x = [point.measures["entropy"] for point in group]
                y = [point.measures["perplexity"] for point in group]
                name = f"{system}, {sampler}, {evaluations}"
                draw_line(ax, system, sampler, x, y, name)
        real = results.data[task]["measures"]
        ax.plot(real["entropy"], real["perplexity"], "*", ms=14, color="#222222", label="held-out text")
        ax.set_yscale("log")
        ax.set_xlabel("entropy of a sample's tokens, nats")
        ax.set_ylabel("perplexity under the evaluator")
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.tight_layout()
    return figure


def digit_sheet(results: Results, budget: str) -> Figure:
    """Held-out digits, then samples of each system at the most evaluations that were run."""
    rows: list[tuple[str, list[list[int]]]] = [("held out", results.data["digits"]["samples"])]
    for system, cells in results.of("digits", budget).items():
        at_one = [point for point in cells[0]["points"] if point["temperature"] == 1.0]
        rows.append((system, max(at_one, key=lambda point: point["evaluations"])["samples"]))
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(len(rows), 4, figsize=(4.2, 0.85 * len(rows)), squeeze=False)
        for line, (name, samples) in zip(axes, rows, strict=True):
            for ax, sample in zip(line, samples, strict=True):
                ax.imshow([sample[8 * i : 8 * i + 8] for i in range(8)], cmap="gray_r", vmin=0, vmax=3)
                ax.set_axis_off()
            line[0].text(-1.5, 4, name, ha="right", va="center", fontsize=8)
    return figure
