"""Pages and pictures of benchmarks come from the results that are kept, and from nothing else."""

import re
from pathlib import Path

import pytest

from benchmarks import plots, report, results_file

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"


@pytest.fixture(scope="module")
def remade(tmp_path_factory) -> Path:
    """The performance page, made again from the results that it names."""
    folder = tmp_path_factory.mktemp("pages")
    kept = [str(ROOT / name) for name in re.findall(r"kept in `(.*?)`", PAGE.read_text())]
    report.main([*kept, "-o", str(folder / "performance.md")])
    return folder


def test_the_performance_page_is_made_from_the_results_it_names(remade):
    assert (remade / "performance.md").read_text() == PAGE.read_text()


def test_its_pictures_are_there(remade):
    made = {file.name for file in (remade / "images").iterdir()}
    shown = {Path(address).name for address in re.findall(r"\]\((images/.*?)\)", PAGE.read_text())}
    assert made == shown
    assert all((ROOT / "docs" / "images" / name).is_file() for name in shown)


def test_figures_of_the_readme_are_those_of_the_performance_page():
    source = re.search(r"kept in `(.*?)`", PAGE.read_text())[1]
    results = results_file.parse(results_file.read(ROOT / source))
    picture = f"docs/images/performance-{results.slug}-ratios.svg"
    assert report.block(results, picture) in (ROOT / "README.md").read_text()


def test_the_first_numbers_are_those_of_the_performance_page():
    source = re.search(r"kept in `(.*?)`", PAGE.read_text())[1]
    words = report.first_numbers(results_file.parse(results_file.read(ROOT / source)))
    assert words in (ROOT / "README.md").read_text()
    assert words in (ROOT / "docs" / "index.md").read_text()


def test_the_first_numbers_name_the_best_rival_beside_the_usual_way():
    op = "linear_sigmoid_bce forward+backward"
    rows = [
        row(op, "ggm_kernels cpu", "ours", 0.001),
        row(op, "full logits", "rival", 2.0, peak_extra_MB=70.0),
    ]
    shown = report.first_numbers(results_of(*rows))
    assert "| PyTorch, full logits | 2 s | 70 MB |" in shown and "1 ms | 1 MB" in shown
    assert "best rival" not in shown
    shown = report.first_numbers(results_of(*rows, row(op, "gather", "rival", 0.5)))
    assert "| PyTorch, gather, the best rival | 500 ms | 1 MB |" in shown


def row(op, implementation, role, seconds, **notes):
    notes = {"peak_extra_MB": 1.0, "ceiling": "copy", "share_of_ceiling": 0.5, **notes}
    kept = {"op": op, "size": {"N": 2, "V": 3}, "implementation": implementation, "role": role}
    return {**kept, "seconds": seconds, "notes": notes}


def results_of(*rows) -> results_file.Results:
    ceilings = {
        "cpu": {"copy_GB_per_s": {"1024": 50.0, "65536": 10.0}, "matrix_Gflop_per_s": {"float32": 100.0}}
    }
    machine = {"cpu": "a processor", "cores": 2, "gpu": None, "ceilings": ceilings}
    return results_file.parse({"machine": machine, "commit": "0", "date": "2000-01-01", "rows": rows})


def test_the_roofline_shows_ours_and_the_best_rival_under_copies_beyond_cache():
    multiplies = {"flop_per_byte": 0.25}
    results = results_of(
        row("head", "ggm_kernels cpu", "ours", 1.0, **{"Gflop/s": 2.0, **multiplies}),
        row("head", "slow rival", "rival", 9.0, **{"Gflop/s": 0.1, **multiplies}),
        row("head", "rival", "rival", 2.0, **{"Gflop/s": 1.0, **multiplies}),
        row("corrupt", "ggm_kernels cpu", "ours", 1.0),
    )
    (axes,) = plots.figures(results)["roofline"].axes
    points = [tuple(at) for dots in axes.collections for at in dots.get_offsets().tolist()]
    assert points == [(0.25, 2.0), (0.25, 1.0)]
    slope, flat = (line.get_xydata() for line in axes.lines[1:])  # after the line that joins the two points
    assert (slope[:, 1] == 10.0 * slope[:, 0]).all()
    assert (flat[:, 1] == 100.0).all()
    assert slope[1].tolist() == flat[0].tolist() == [10.0, 100.0]


def test_no_roofline_of_what_does_not_multiply():
    assert "roofline" not in plots.figures(results_of(row("corrupt", "ggm_kernels cpu", "ours", 1.0)))
