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
    {"model_config", "predictions"},
    {"sampling"},
    {"backbones", "objective"},
    {"chain", "hub", "arguments", "mixture"},
    {"data"},
    {"config", "digests", "draws", "model_card", "processes", "progress"},
    {"files"},
    {"extras"},
]
# The rooms of `ggm_kernels` likewise; what stands in no line is below all, and imports none of them.
KERNEL_FLOORS = [
    {"__main__"},
    {"integrations"},
    {"ops"},
    {"noise", "triton"},
    {"native"},
    {"products"},
    {"reference"},
    {"arguments"},
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


def upward_among_kernels(found: set[tuple[str, str]]) -> list[tuple[str, str]]:
    floors = {room: number for number, rooms in enumerate(KERNEL_FLOORS) for room in rooms}
    inside = [(a, b) for a, b in found if "ggm_kernels" not in (a, b) and b.startswith("ggm_kernels.")]
    rooms = [((a, b), floors.get(room(a), len(floors)), floors.get(room(b), len(floors))) for a, b in inside]
    ground = len(floors)
    return [arrow for arrow, a, b in rooms if room(arrow[0]) != room(arrow[1]) and b <= a and b != ground]


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


def test_no_backend_imports_an_op():
    assert upward_among_kernels(arrows("ggm_kernels")) == []


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
    planted = ("ggm_kernels.native.commit", "ggm_kernels.ops.commit")
    assert upward_among_kernels({planted}) == [planted]
    assert circle({("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")}) == ["a", "b", "c"]
