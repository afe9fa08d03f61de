"""Pictures of a run's results."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.results_file import SYMBOLS, Case, Results, Row
from benchmarks.words import seconds_words, size_words

# Letters as paths: the same picture wherever it is shown. A fixed salt: the same file from the same results.
STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "ggm-kernels",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}
OURS, RIVAL = "#c8384e", "#8a94a6"
RIVALS = ["#5b6b8c", "#9aa5b8", "#3f8f8a", "#b08d57", "#7a5c8e", "#6f8f3f"]
BOUNDS = {"copy": "of copying its bytes", "matrix": "of the matrix product"}
LEAST_MEMORY = 0.1  # MB: less than this is not seen in a process's resident pages
SWEPT = ("V", "N", "d", "B", "K")
FEWEST_SIZES = 3
SMALL_BESIDE = {"textcoords": "offset points", "size": 9}


def figures(results: Results) -> dict[str, Figure]:
    """All pictures that the results allow, by name."""
    with plt.rc_context(STYLE):
        cases = [case for case in results.headlines() if case.ours and case.rival]
        drawn = {
            "ratios": ratios(cases),
            "ceiling": ceiling([case for case in cases if case.ours.share is not None]),
            "roofline": roofline(results),
            "memory": memory([case for case in cases if case.ours.memory is not None]),
        }
        for symbol in SWEPT:
            sweeps = list(find_sweeps(results, symbol))
            if sweeps:
                drawn[f"by-{symbol}"] = curves(sweeps, symbol)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save(figure: Figure, path: Path) -> None:
    """Write an SVG that depends on nothing but the picture."""
    with plt.rc_context(STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def label(case: Case) -> str:
    """Op and size on two lines."""
    return f"{case.op}\n{size_words(case)}"


def ratios(cases: list[Case]) -> Figure | None:
    """How many times faster than the best rival, a bar per op."""
    if not cases:
        return None
    figure, axes = _bars(cases, per_case=1)
    axes.set_xscale("log")
    for y, case in enumerate(cases):
        axes.barh(y, case.ratio - 1, left=1, height=0.55, color=OURS)
        text = f"{case.ratio:.3g}×  {case.rival.implementation}"
        axes.annotate(text, (max(case.ratio, 1), y), (6, 0), textcoords="offset points", va="center")
    axes.axvline(1, color="black", linewidth=1)
    low, high = min(0.8, *(0.8 * case.ratio for case in cases)), max(case.ratio for case in cases)
    axes.set_xlim(low, max(high, 2) ** 1.35)
    _plain(axes.xaxis, "{:g}×")
    _more_ticks(axes.xaxis)
    axes.set_xlabel("times faster than the best rival in the same run")
    return figure


def ceiling(cases: list[Case]) -> Figure | None:
    """Share of the machine's ceiling: ours, and the best rival's."""
    if not cases:
        return None
    figure, axes = _bars(cases, per_case=2)
    for y, case in enumerate(cases):
        for row, shift, colour in ((case.ours, -0.2, OURS), (case.rival, 0.2, RIVAL)):
            share = 100 * (row.share or 0)
            axes.barh(y + shift, share, height=0.36, color=colour)
            text = f"{share:.2g} %  {row.implementation}"
            axes.annotate(text, (share, y + shift), (5, 0), textcoords="offset points", va="center", size=9)
    bounds = [BOUNDS[case.ours.notes["ceiling"]] for case in cases]
    axes.set_yticks(
        range(len(cases)),
        [f"{label(case)}\n{bound}" for case, bound in zip(cases, bounds, strict=True)],
        size=9,
    )
    axes.axvline(100, color="black", linewidth=1, zorder=0)
    axes.set_xlim(0, max(130, *(135 * (case.ours.share or 0) for case in cases)))
    axes.set_xlabel("share of what this machine reached in the same run, %")
    return figure


def roofline(results: Results) -> Figure | None:
    """Arithmetic achieved against arithmetic per byte that the task must move, under the machine's roof.

    Of the tasks that multiply, variants left out; the sizes beside a task's headline are small points. A
    rival's extra bytes and products do not count: the task can do without.
    """
    headlines = list(results.headlines())
    multiply = [
        case
        for case in results.cases
        if "," not in case.op and case.ours and "flop_per_byte" in case.ours.notes
    ]
    if not multiply:
        return None
    figure, axes = plt.subplots(figsize=(9, 5.6))
    axes.set_xscale("log")
    axes.set_yscale("log")
    for case in multiply:
        rows = [case.ours] + ([case.rival] if case.rival else [])
        at = [case.ours.notes["flop_per_byte"]] * len(rows)
        reached = [row.notes["Gflop/s"] for row in rows]
        named = case in headlines
        axes.plot(at, reached, color="#d0d0d0", linewidth=2 if named else 1, zorder=1)
        axes.scatter(at, reached, s=70 if named else 16, color=[OURS, RIVAL][: len(rows)], zorder=3)
        if named:
            axes.annotate(case.op, (at[0], reached[0]), (9, -4), **SMALL_BESIDE)
    _roof(axes, results.machine["ceilings"])
    axes.scatter([], [], s=60, color=OURS, label="ours")
    axes.scatter([], [], s=60, color=RIVAL, label="best rival")
    axes.legend(loc="lower right")
    axes.grid(True, axis="both")
    axes.set_xlabel("flop per byte that the task must move")
    axes.set_ylabel("Gflop/s of what the task must multiply")
    return figure


def _roof(axes: Axes, ceilings: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Measured ceilings: copies beyond cache, and products of each type."""
    low, high = axes.get_xlim()
    ends = [8 * high]  # room for words
    for rates in ceilings.values():
        copies = {int(size): rate for size, rate in rates["copy_GB_per_s"].items()}
        copied = copies[max(copies)]
        products = rates["matrix_Gflop_per_s"]
        ridge = max(products.values(), default=copied * high) / copied
        ends.append(4 * ridge)
        axes.plot([low, ridge], [low * copied, ridge * copied], color="black", zorder=2)
        middle = (low * ridge) ** 0.5
        words = f"copying at {copied:.3g} GB/s"
        axes.annotate(words, (middle, middle * copied), (-8, 4), ha="right", **SMALL_BESIDE)
        for dtype, rate in products.items():
            axes.plot([rate / copied, max(ends)], [rate, rate], color="black", zorder=2)
            axes.annotate(f"{dtype} products", (rate / copied, rate), (0, 6), **SMALL_BESIDE)
    axes.set_xlim(low, max(ends))


def memory(cases: list[Case]) -> Figure | None:
    """Peak extra memory: ours, and every rival's."""
    if not cases:
        return None
    figure, axes = _bars(cases, per_case=1)
    axes.set_xscale("log")
    for y, case in enumerate(cases):
        rivals = [row for row in case.rows if row.role == "rival" and row.memory is not None]
        most = max(rivals, key=lambda row: row.memory)
        points = [_seen(row.memory) for row in (*rivals, case.ours)]
        axes.plot([min(points), max(points)], [y, y], color="#d0d0d0", linewidth=2, zorder=1)
        axes.scatter([_seen(row.memory) for row in rivals], [y] * len(rivals), s=55, color=RIVAL, zorder=2)
        axes.scatter([_seen(case.ours.memory)], [y], s=70, color=OURS, zorder=3)
        axes.annotate(
            most.implementation,
            (_seen(most.memory), y),
            (8, 0),
            textcoords="offset points",
            va="center",
            size=9,
        )
    axes.scatter([], [], s=70, color=OURS, label="ours")
    axes.scatter([], [], s=55, color=RIVAL, label="rivals")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.2)
    _plain(axes.xaxis, "{:g}")
    axes.set_xlabel(f"peak extra memory, MB (points at {LEAST_MEMORY}: that or less)")
    return figure


def find_sweeps(results: Results, symbol: str) -> Iterable[list[Case]]:
    """Per op, the most cases that differ in one extent only."""
    for op, cases in results.by_op().items():
        if "," in op:
            continue
        alike: dict[tuple, list[Case]] = {}
        for case in cases:
            if symbol in case.size:
                rest = tuple((key, value) for key, value in case.size.items() if key != symbol)
                alike.setdefault(rest, []).append(case)
        most = max(alike.values(), key=len, default=[])
        if len(most) >= FEWEST_SIZES:
            yield sorted(most, key=lambda case: case.size[symbol])


def curves(sweeps: list[list[Case]], symbol: str) -> Figure:
    """Time, and below it memory, against one extent; a column per op."""
    figure, axes = plt.subplots(2, len(sweeps), figsize=(4.1 * len(sweeps) + 0.6, 6.6), squeeze=False)
    for column, cases in enumerate(sweeps):
        _curves(axes[0, column], cases, symbol, lambda row: row.seconds)
        _curves(axes[1, column], cases, symbol, lambda row: _seen(row.memory))
        rest = ", ".join(f"{key}={value}" for key, value in cases[0].size.items() if key != symbol)
        axes[0, column].set_title(f"{cases[0].op}\n{rest}", size=11)
        axes[0, column].yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds_words(value, 3)))
        _plain(axes[1, column].yaxis, "{:g}")
        axes[1, column].set_xlabel(f"{symbol} ({SYMBOLS[symbol]})")
        handles, names = axes[0, column].get_legend_handles_labels()
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "fontsize": 9}
        axes[1, column].legend(handles, names, **below)
    axes[0, 0].set_ylabel("time of a call")
    axes[1, 0].set_ylabel("peak extra memory, MB")
    figure.tight_layout()
    return figure


def _curves(axes: Axes, cases: list[Case], symbol: str, measured: Callable[[Row], float]) -> None:
    names = {row.implementation: row.role for case in cases for row in case.rows}
    colours = iter(RIVALS * 2)
    for name, role in names.items():
        points = [
            (case.size[symbol], measured(row))
            for case in cases
            for row in case.rows
            if row.implementation == name
        ]
        if len(points) < FEWEST_SIZES:
            continue
        colour = OURS if role == "ours" else next(colours)
        line = ":" if role == "reference" else "--" if role == "floor" else "-"
        width = 2.6 if role == "ours" else 1.6
        order = 3 if role == "ours" else 2
        axes.plot(
            *zip(*points, strict=True),
            line,
            marker="o",
            color=colour,
            linewidth=width,
            label=name,
            zorder=order,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([case.size[symbol] for case in cases])
    _plain(axes.xaxis, "{:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    _more_ticks(axes.yaxis)
    axes.grid(True, axis="y")


def _bars(cases: list[Case], per_case: int) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(9, 1.0 + (0.48 + 0.12 * per_case) * len(cases)))
    axes.set_yticks(range(len(cases)), [label(case) for case in cases], size=10)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(True)
    return figure, axes


def _plain(axis, form: str) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))
    axis.set_minor_formatter(NullFormatter())


def _more_ticks(axis) -> None:
    """Ticks at 2 and 5, too, where a logarithmic axis has less than two powers of ten."""
    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _seen(memory: float | None) -> float:
    return max(memory or 0.0, LEAST_MEMORY)
