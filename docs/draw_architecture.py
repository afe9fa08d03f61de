"""Draws docs/images/architecture.svg: the folders of the two packages, and which imports which.

python docs/draw_architecture.py [FILE]
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
PACKAGES = ("ggm", "ggm_kernels")
COLOURS = {"ggm": "#f6e3e6", "ggm_kernels": "#e2e8f2"}
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 172, 34, 24, 46, 20


def room_of(path: Path) -> str:
    """Folder that a source is in, or its package."""
    return ".".join(path.relative_to(ROOT).parent.parts[:2])


def imports() -> dict[str, set[str]]:
    """For each room the rooms that its modules import, inside functions, too."""
    found: dict[str, set[str]] = defaultdict(set)
    sources = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    rooms = {room_of(path) for path in sources}
    for path in sources:
        room = room_of(path)
        found[room]  # a room that imports none is drawn, too
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                parts = name.split(".")
                target = ".".join(parts[:2])
                target = target if target in rooms else parts[0]
                if target in rooms and target != room:
                    found[room].add(target)
    return dict(found)


def floors(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Rooms from the top down: each below those that import it; the plain package below its folders."""
    ranks = {}

    def rank(room: str, seen: frozenset[str]) -> int:
        if room not in ranks:
            below = [other for other in graph[room] if other not in seen and not room.startswith(f"{other}.")]
            below = [other for other in below if not other.startswith(f"{room}.")]
            ranks[room] = 1 + max((rank(other, seen | {room}) for other in sorted(below)), default=-1)
        return ranks[room]

    for room in sorted(graph):
        rank(room, frozenset({room}))
    # All of ggm stands above all of ggm_kernels.
    kernels = max(ranks[room] for room in graph if room.startswith("ggm_kernels"))
    lowest = min(ranks[room] for room in graph if not room.startswith("ggm_kernels"))
    shift = max(0, kernels + 1 - lowest)
    for room in graph:
        ranks[room] += 0 if room.startswith("ggm_kernels") else shift
    used = sorted(set(ranks.values()), reverse=True)
    return [sorted(room for room in graph if ranks[room] == level) for level in used]


def svg(graph: Mapping[str, set[str]]) -> str:
    """The picture."""
    rows = floors(graph)
    wide = max(map(len, rows)) * (WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    tall = len(rows) * (HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    at = {}
    for y, row in enumerate(rows):
        left = (wide - len(row) * (WIDTH + GAP_X) + GAP_X) / 2
        for x, room in enumerate(row):
            at[room] = (left + x * (WIDTH + GAP_X), MARGIN + y * (HEIGHT + GAP_Y))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {tall:g}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#8a94a6"/></marker></defs>',
    ]
    for room, others in sorted(graph.items()):
        for other in sorted(others):
            (x, y), (u, v) = at[room], at[other]
            if v > y:  # a package's __init__ gathers names of its folders: that is no dependence
                ends = f'x1="{x + WIDTH / 2:g}" y1="{y + HEIGHT:g}" x2="{u + WIDTH / 2:g}" y2="{v:g}"'
                lines.append(f'<line {ends} stroke="#8a94a6" stroke-width="0.9" marker-end="url(#end)"/>')
    for room, (x, y) in sorted(at.items()):
        fill = COLOURS[room.split(".")[0]]
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" '
            f'fill="{fill}" stroke="#5b6b8c"/>'
        )
        lines.append(f'<text x="{x + WIDTH / 2:g}" y="{y + 21:g}" text-anchor="middle">{room}</text>')
    return "\n".join([*lines, "</svg>\n"])


if __name__ == "__main__":
    Path(sys.argv[1] if sys.argv[1:] else PICTURE).write_text(svg(imports()), encoding="utf-8")
