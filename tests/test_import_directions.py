"""Imports run downwards: from commands to training and evaluation, to the model, to the mathematics, to the kernels."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A folder or a file of `ggm`, and those that it may import; each line may use the lines below it.
FLOORS = [
    {"__main__"},
    {"commands"},
    {"training", "evaluation"},
    {"model", "converted"},
    {"model_config"},
    {"sampling"},
    {"backbones", "objective"},
    {"chain", "hub", "arguments", "mixture"},
    {"data"},
    {"config", "digests", "draws", "model_card", "processes", "progress"},
    {"files"},
    {"extras"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """Modules that a file imports anywhere in it: inside functions and for type checkers, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module


def arrows(package: str) -> set[tuple[str, str]]:
    trees = dict(modules(package))
    return {(name, other) for name, tree in trees.items() for other in imported(tree, set(trees))}


def room(module: str) -> str:
    """Folder or file of `ggm` that a module is in."""
    return module.split(".")[1]


def upward(found: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Imports of a room on the same floor or above, other than of the room itself."""
    inside = [(a, b) for a, b in found if a.startswith("ggm.") and b.startswith("ggm.")]
    return [(a, b) for a, b in inside if room(a) != room(b) and FLOOR[room(b)] <= FLOOR[room(a)]]


def circle(found: set[tuple[str, str]]) -> list[str]:
    """Modules of circles of imports and those that lead there, or none."""
    left = {module for arrow in found for module in arrow}
    while ends := {module for module in left if not any(a == module and b in left for a, b in found)}:
        left -= ends
    return sorted(left)


def test_every_room_has_a_floor():
    rooms = {room(name) for name, _ in modules("ggm") if name != "ggm"}
    assert rooms == set(FLOOR)


def test_no_import_runs_upwards():
    assert upward(arrows("ggm")) == []


@pytest.mark.parametrize("package", ["ggm", "ggm_kernels"])
def test_no_circles(package):
    # The package's own face, whose names are imported when they are used, is no arrow.
    found = {(a, b) for a, b in arrows(package) if a != package and b.startswith(f"{package}.")}
    assert circle(found) == []


def test_the_kernels_do_not_know_the_model():
    assert [arrow for arrow in arrows("ggm_kernels") if arrow[1].split(".")[0] == "ggm"] == []


def test_planted_arrows_are_found():
    assert upward({("ggm.chain", "ggm.sampling.steps")}) == [("ggm.chain", "ggm.sampling.steps")]
    assert upward({("ggm.training.run", "ggm.evaluation.held_out")}) != []
    assert circle({("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")}) == ["a", "b", "c"]
