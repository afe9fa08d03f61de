"""The bench of quality runs, goes on where it stopped, and its page comes from what is kept and nothing else."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.quality import __main__ as command
from benchmarks.quality import report, results, variations
from benchmarks.quality.cells import Cell, cells_of, kept_bytes, points, steps_of
from benchmarks.quality.estimate import training_minutes
from benchmarks.quality.presets import PRESETS, Preset
from benchmarks.quality.results import HEADLINES
from benchmarks.quality.system import Shape
from benchmarks.quality.systems import ABLATIONS, SYSTEMS, make_system
from benchmarks.quality.tasks import MAKERS, completed_share
from ggm.backbones.layers import TransformerConfig

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "quality.md"
SMOKE = [
    "--preset",
    "smoke",
    "--tasks",
    "potts",
    "--systems",
    "ggm-hollow",
    "mdlm",
    "--seconds",
    "0.1",
    "--quiet",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    # As its users run it: processes of a pool must find what they are to do.
    words = [sys.executable, "-m", "benchmarks.quality", *SMOKE, "--workers", "2", "--out", str(folder)]
    subprocess.run(words, check=True, cwd=ROOT)
    return folder


def test_a_cell_tells_what_it_is_of_and_what_it_cost(folder):
    found = results.read(folder)
    assert found.tasks() == ["potts"]
    for cell in found.cells:
        training = cell["training"]
        pace = found.data["potts"]["paces"][cell["cell"]["system"]]
        assert training["pace"] == pace > 0.0 and training["seconds"] > 0.0
        assert training["steps"] == max(1, round(0.25 * 0.1 / pace))
        assert cell["kept_MB"] > 0 and cell["parameters"] > 1000
        assert cell["bound"]["nats_per_token"] > 0.0
        settings = [(p["sampler"], p["evaluations"], p["temperature"]) for p in cell["points"]]
        assert len(set(settings)) == len(settings) >= 2
        assert all(0.0 <= p["measures"]["total_variation"] <= 1.0 for p in cell["points"])
        assert all(p["seconds_per_sample"] > 0.0 for p in cell["points"])


def test_what_is_done_is_not_done_again(folder):
    made = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    command.main([*SMOKE, "--out", str(folder)])
    lost = folder / "potts.mdlm.seconds.0.json"
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == made
    lost.unlink()
    command.main([*SMOKE, "--out", str(folder)])
    again = {file for file in folder.iterdir() if file.stat().st_mtime_ns != made[file]}
    assert again == {lost}


def test_a_folder_of_other_settings_is_refused(folder):
    with pytest.raises(ValueError, match="samples: got 17; allowed: 16"):
        command.main([*SMOKE, "--out", str(folder), "--samples", "17"])


def test_a_page_and_one_file_are_made_of_it(folder, tmp_path):
    kept = tmp_path / "kept.json"
    report.main([str(folder), "-o", str(tmp_path / "a.md"), "--keep", str(kept)])
    report.main([str(kept), "-o", str(tmp_path / "b.md")])
    page = (tmp_path / "a.md").read_text()
    assert page == (tmp_path / "b.md").read_text()
    assert "ggm-hollow, heat bath" in page and "mdlm, ancestral" in page
    assert json.loads(kept.read_text())["preset"]["seconds"] == 0.1


def test_a_failing_cell_is_told_before_what_is_behind_it(folder, tmp_path, monkeypatch):
    (tmp_path / "potts.data.json").write_bytes((folder / "potts.data.json").read_bytes())
    behind = [Cell("potts", "mdlm", "seconds", seed) for seed in range(8)]
    monkeypatch.setattr(command, "cells_of", lambda _: [Cell("potts", "nobody", "seconds", 0), *behind])
    with pytest.raises(KeyError, match="nobody"):
        command.main([*SMOKE, "--out", str(tmp_path), "--workers", "1"])
    assert len(list(tmp_path.glob("potts.mdlm.*.json"))) < 8


def test_a_folder_of_another_processor_is_refused(folder, tmp_path):
    values = json.loads((folder / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**values, "processor": "an abacus"}))
    with pytest.raises(ValueError, match="processor: got .*; allowed: an abacus"):
        command.main([*SMOKE, "--out", str(tmp_path)])


def test_an_estimate_is_of_what_is_left_and_trains_nothing(tmp_path, capsys):
    words = [*SMOKE, "--estimate", "--workers", "1", "--out", str(tmp_path)]
    command.main(words)
    table = capsys.readouterr().out
    assert re.search(r"^potts +2 +0\.0 m +\d+\.\d m +\d+$", table, re.MULTILINE), table
    assert re.search(r"^predicted: \d+ minutes, 1 cells at a time$", table, re.MULTILINE), table
    assert {file.name for file in tmp_path.iterdir()} == {"run.json", "potts.data.json"}
    drawn = json.loads((tmp_path / "potts.data.json").read_text())["sampling"]
    # Of MDLM: 4 steps of each of its samplers, as there are 4 positions.
    assert drawn["mdlm"]["evaluations"] == 12 and drawn["mdlm"]["seconds"] > 0.0


def test_nothing_is_left_of_what_was_run(folder, capsys):
    command.main([*SMOKE, "--estimate", "--workers", "1", "--out", str(folder)])
    assert "predicted: 0 minutes" in capsys.readouterr().out


def test_a_budget_of_seconds_is_steps_at_the_pace():
    preset = PRESETS["small"]
    assert steps_of(Cell("digits", "mdlm", "seconds", 2), preset, pace=0.1) == 400
    assert steps_of(Cell("pydoc-char", "mdlm", "seconds", 0), preset, pace=0.1) == 1600
    assert steps_of(Cell("sudoku-4", "mdlm", "steps", 0), preset, pace=0.1) == 200
    assert steps_of(Cell("potts", "mdlm", "seconds", 0), preset, pace=1e3) == 1


def test_what_a_training_grid_completes_is_counted():
    grids = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]])
    puzzles = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0]])
    given = torch.tensor([[True] * 4, [True, True, False, False], [True, True, True, False]])
    assert completed_share(grids, puzzles, given) == pytest.approx(2 / 3)


@pytest.mark.parametrize("frontier", [True, False])
def test_temperatures_are_those_of_texts(frontier):
    shape = Shape(16, 3, TransformerConfig(width=8, depth=3, heads=2))
    made = list(points("mdlm", make_system("mdlm", shape), PRESETS["small"], frontier))
    assert len(set(made)) == len(made)
    ancestral = {(steps, temperature) for sampler, steps, temperature in made if sampler == "ancestral"}
    cold = {(16, 0.8), (16, 0.9)} if frontier else set()
    assert ancestral == {(4, 1.0), (8, 1.0), (16, 1.0), (64, 1.0), *cold}


def test_presets_name_what_there_is():
    assert set(MAKERS) == set(HEADLINES)
    for preset in PRESETS.values():
        assert set(preset.tasks) <= set(MAKERS) and set(preset.systems) <= {*SYSTEMS, *ABLATIONS}
    # Trainings alone, of two processes and of one GPU.
    assert training_minutes(cells_of(PRESETS["small"]), PRESETS["small"]) / 2 < 45
    assert {"mdlm", "sedd-absorbing", "ggm-hollow"} < set(PRESETS["small"].systems)
    assert training_minutes(cells_of(PRESETS["gpu"]), PRESETS["gpu"]) < 15
    with pytest.raises(ValueError, match="seconds: got 0"):
        Preset(seconds=0)


def test_ablations_change_what_they_say():
    shape = Shape(8, 3, TransformerConfig(width=8, depth=3, heads=2))
    made = {name: make_system(name, shape).model.config for name in ABLATIONS}
    first = made.pop("ggm-hollow")
    for name, config in made.items():
        field, _, value = name.partition("=")
        found = {**vars(config.chain), **vars(config.objective)}[field]
        assert str(found) in (value, f"{value}.0")
        assert config != first


def test_what_a_pass_keeps_is_counted():
    weight = torch.nn.Parameter(torch.ones(100, 100))
    x = torch.ones(50, 100)
    assert kept_bytes(lambda: (x @ weight).square().sum()) == 4 * (50 * 100 + 50 * 100)
    assert kept_bytes(lambda: (x @ weight).sum()) == 4 * 50 * 100


def synthetic(**values: float) -> results.Results:
    """Two seeds of one system, one of each of two others."""

    def cell(system: str, seed: int, distance: float) -> dict:
        point = {
            "sampler": "s",
            "evaluations": 4,
            "evaluations_per_sample": 4.0,
            "temperature": 1.0,
            "seconds_per_sample": 1e-3,
            "measures": {"frechet": distance, "copies": 0.0},
            "samples": [[0] * 64] * 4,
        }
        return {
            "cell": {"task": "digits", "system": system, "budget": "seconds", "seed": seed},
            "parameters": 10,
            "training": {"steps": 5, "pace": 8.0, "seconds": 40.0, "loss": 1.0},
            "kept_MB": 1.0,
            "bound": {"nats_per_token": 1.0, "standard_error": 0.1},
            "points": [point],
            "load": 0.5,
            "machine": {"gpu": None, "cpu": "a processor", "versions": {"torch": "0"}},
        }

    cells = [cell("ggm-hollow", 0, 2.0), cell("ggm-hollow", 1, 4.0)]
    cells += [cell("mdlm", 0, values.get("mdlm", 5.0)), cell("uniform", 0, 9.0)]
    data = {"digits": {"measures": {"frechet": 1.5}, "samples": [[0] * 64] * 4}}
    preset = {
        "seconds": 40.0,
        "samples": 8,
        "evaluator_seconds": 1.0,
        "evaluations": [4, 8],
        "learning_rate": 3e-3,
    }
    return results.Results(preset, cells, data)


def test_seeds_are_averaged_and_the_best_is_bold_whoever_it_is():
    table = report.curves(synthetic(), "digits", "seconds")
    assert "| ggm-hollow, s | **3 ± 1** |" in table and "| mdlm, s | 5 |" in table
    table = report.curves(synthetic(mdlm=2.5), "digits", "seconds")
    assert "| mdlm, s | **2.5** |" in table and "| ggm-hollow, s | 3 ± 1 |" in table
    assert "| mdlm | 3 (ggm-hollow, 4 evaluations) | 2.5 (mdlm, 4 evaluations) | 1.5 |" in report.glance(
        synthetic(mdlm=2.5)
    )


def test_costs_are_shown():
    assert "| mdlm, s | 1 |" in report.sampling_costs(synthetic(), "digits", "seconds")


def test_dull_samples_are_not_the_best_at_a_glance():
    found = synthetic(mdlm=2.5)
    for cell in found.cells:
        cell["points"][0]["measures"]["entropy"] = 2.0 - 0.2 * (cell["cell"]["system"] == "mdlm")
    found.data["digits"]["measures"]["entropy"] = 2.0
    assert "2.5 (mdlm, 4 evaluations)" in report.glance(found)
    found.data["digits"]["measures"]["entropy"] = 2.2  # 0.4 above mdlm's, 0.2 above the others'
    told = report.glance(found)
    assert "mdlm" not in told and "| ggm-hollow | 3 (ggm-hollow, 4 evaluations) | 9 (uniform" in told


def test_what_more_evaluations_buy_names_the_setting():
    found = synthetic(mdlm=2.5)
    found.cells[2]["points"][0]["evaluations_per_sample"] = 7.5
    table = report.budgets_of_evaluations(found)
    assert "| digits | GGM | 3 (ggm-hollow, s) | 3 (ggm-hollow, s) |" in table
    assert "| digits | rivals | 9 (uniform, s) | 2.5 (mdlm, s) |" in table


def test_learning_rates_stand_beside_each_other():
    found, other = synthetic(), synthetic(mdlm=4.0)
    assert variations.learning_rates(dataclasses.replace(found, others=(other,))) == ""  # it has the same
    other.preset["learning_rate"] = 1e-3
    other.cells[2]["bound"]["nats_per_token"] = 0.75
    table = variations.learning_rates(dataclasses.replace(found, others=(other,)))
    assert "| system | bound, 0.001 | bound, 0.003 | frechet, 0.001 | frechet, 0.003 |" in table
    assert "| mdlm | **0.750** | 1.000 | **4** | 5 |" in table


def test_ablations_are_held_against_the_first():
    found, other = synthetic(), synthetic()
    for cell, system in zip(
        other.cells, ("ggm-hollow", "ggm-hollow", "sweeps=2", "order=raster"), strict=True
    ):
        cell["cell"] |= {"system": system, "budget": "steps"}
    assert (
        variations.ablations(found) == "" == variations.ablations(dataclasses.replace(found, others=(found,)))
    )
    text = variations.ablations(dataclasses.replace(found, others=(other,)))
    assert "Equal steps (digits 5), 2 seeds" in text
    assert "| nothing changed | 1.000 | 3 |" in text and "| sweeps=2 | 1.000 | 5 |" in text


def kept_of_the_page() -> Path:
    return ROOT / re.search(r"kept in `(.*?)`", PAGE.read_text())[1]


def test_the_quality_page_is_made_from_the_results_it_names(tmp_path):
    report.main([str(kept_of_the_page()), "-o", str(tmp_path / "quality.md")])
    assert (tmp_path / "quality.md").read_text() == PAGE.read_text()
    made = {file.name for file in (tmp_path / "images").iterdir()}
    shown = {Path(address).name for address in re.findall(r"\]\((images/.*?)\)", PAGE.read_text())}
    assert made == shown
    assert all((ROOT / "docs" / "images" / name).is_file() for name in shown)
