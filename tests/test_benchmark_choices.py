"""The command that measures choices: its rows, its file, its page."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.choices import __main__ as command
from benchmarks.choices import page
from benchmarks.choices.levers import BASE, LEVERS, Row, rows
from benchmarks.choices.measure import described, measure, model_config
from benchmarks.choices.problems import PROBLEMS, Sequences
from ggm import GGM

RUN = {
    "bound": 1.5,
    "standard_error": 0.1,
    "distance": 2.0,
    "steps": 10,
    "parameters": 5,
    "load": 1.0,
}
MACHINE = {"cpu": "a processor", "cores": 2}


def results(bounds: dict[tuple[str, str, str], list[float]], **run) -> dict:
    runs = {}
    for (problem, lever, name), values in bounds.items():
        for seed, bound in enumerate(values):
            row = Row(problem, lever, name, seed)
            setup = json.loads(json.dumps(described(row.setup())))
            runs[row.key] = {**RUN, "bound": bound, "setup": setup, **run}
    return {"seconds": 1.0, "machine": MACHINE, "runs": runs}


def test_every_row_changes_its_base_and_builds_a_model():
    data = Sequences(torch.zeros(8, 64, dtype=torch.int64), torch.zeros(1, 64), 4, lambda _: 0.0)
    for row in rows(1, list(PROBLEMS)):
        setup, base = row.setup(), Row(row.problem, BASE, BASE, 0).setup()
        assert (setup == base) is (row.lever == BASE)
        torch.manual_seed(0)
        model = GGM(model_config(setup, data))
        assert torch.isfinite(model.loss(torch.zeros(2, 64, dtype=torch.int64), 0, 0))


def test_seeds_come_one_after_the_other():
    found = rows(3, ["digits"])
    assert [row.seed for row in found] == sorted(row.seed for row in found)
    assert len(found) == 3 * (1 + sum(map(len, LEVERS["digits"].values())))
    assert len({row.key for row in found}) == len(found)


def test_the_page_has_means_spreads_and_the_best_row():
    base, row = ("digits", BASE, BASE), ("digits", "learning rate", "twice")
    told = page.render(results({base: [1.0, 1.2, 1.4], row: [0.9, 0.9, 0.9]}))
    assert "| base | 1.200 ± 0.200 | 2.00 ± 0.00 | 10 |" in told
    assert "| twice | **0.900 ± 0.000** | 2.00 ± 0.00 | 10 |" in told
    longer = "(3 times as many for words)"
    assert (
        f"Measured with 1 s of processor time of one thread per run {longer}, on 2 cores of a processor"
        in told
    )
    assert "| digits | bound | learning rate: twice | 0.900 | 1.200 | 2 |" in told
    assert "| digits | samples | base | 2.000 | 2.000 | 2 |" in told
    assert "### Average" not in told and "## Characters" not in told


def test_what_is_better_than_the_base_is_beyond_its_seeds():
    base, row, near = (
        ("digits", BASE, BASE),
        ("digits", "learning rate", "twice"),
        ("digits", "average", "0.9"),
    )
    told = page.render(results({base: [1.0, 1.1, 1.2], row: [0.5, 0.6, 0.7], near: [0.9, 1.0, 1.3]}))
    assert "| digits | learning rate: twice | -0.500 ± 0.082 | +0.000 ± 0.000 |" in told
    assert "average: 0.9 |" not in told
    assert "What is better" not in page.render(results({base: [1.0, 1.1], near: [1.2, 1.3]}))
    assert "What is better" not in page.render(results({base: [1.0], row: [0.5]}))


def test_a_part_and_the_load_are_told():
    every = {(p, lever, name): [1.0] * 3 for p in LEVERS for lever in LEVERS[p] for name in LEVERS[p][lever]}
    assert "reduced run" not in page.render(results(every))
    assert "after a run 9 to 9" in page.render(results(every, load=9.0))
    every["digits", "average", "0.9"] = [1.0]
    assert "**This is a reduced run**: 1 to 3 of 3 seeds, 45 of 45 rows" in page.render(results(every))
    del every["digits", "average", "0.9"]
    assert "reduced run" in page.render(results(every))
    assert "Nothing has been measured yet" in page.render({"runs": {}})


def test_what_is_there_is_not_measured_again_unless_its_setup_is_another():
    row = Row("digits", BASE, BASE, 0)
    runs = results({("digits", BASE, BASE): [1.0]})["runs"]
    assert command._is_there(row, runs) and not command._is_there(Row("digits", BASE, BASE, 1), runs)
    runs[row.key]["setup"]["training"]["batch_size"] += 1
    assert not command._is_there(row, runs)


def test_notes_are_kept_with_the_results_and_stand_on_the_page(tmp_path):
    path, notes = tmp_path / "results.json", tmp_path / "notes.txt"
    path.write_text(json.dumps(results({("digits", BASE, BASE): [1.0]})))
    notes.write_text("take the base\n")
    words = ["--page-only", "--results", str(path), "--page", str(tmp_path / "page.md")]
    command.main([*words, "--notes", str(notes)])
    command.main(words)
    told = (tmp_path / "page.md").read_text()
    assert "## Which setting, then\n\n- take the base\n" in told and command.read(path)["notes"] == [
        "take the base"
    ]


def test_other_seconds_are_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results({("digits", BASE, BASE): [1.0]})))
    with pytest.raises(SystemExit, match="--seconds: got 2; allowed: 1"):
        command.main(["--seconds", "2", "--results", str(path), "--page", str(tmp_path / "page.md")])


def test_a_run_measures_bound_and_samples(monkeypatch):
    digits, threads = PROBLEMS["digits"], torch.get_num_threads()
    data = digits.load()
    few = dataclasses.replace(data, held_out=data.held_out[:8])
    monkeypatch.setitem(PROBLEMS, "digits", dataclasses.replace(digits, load=lambda: few, samples=16))
    found = measure(Row("digits", "prediction and network", "denoiser, data", 0), seconds=0.2)
    torch.set_num_threads(threads)
    assert 0.1 < found["bound"] < 3.0 and found["standard_error"] < 0.5
    assert found["distance"] > 1.0 and found["steps"] >= 1


def test_the_page_is_that_of_the_results():
    path = Path(page.__file__).parent / "results.json"
    assert page.PAGE.read_text() == page.render(command.read(path))


@pytest.mark.slow
def test_a_failing_run_is_told_before_what_is_behind_it(tmp_path, monkeypatch):
    behind = [Row("digits", BASE, BASE, seed) for seed in range(8)]
    monkeypatch.setattr(command, "rows", lambda *_: [Row("digits", "nobody", "nothing", 0), *behind])
    kept = tmp_path / "results.json"
    words = [
        "--workers",
        "1",
        "--seconds",
        "0.1",
        "--results",
        str(kept),
        "--page",
        str(tmp_path / "page.md"),
    ]
    with pytest.raises(KeyError, match="nobody"):
        command.main(words)
    made = json.loads(kept.read_text())["runs"] if kept.exists() else {}
    assert len(made) < 8 and not (tmp_path / "page.md").exists()
