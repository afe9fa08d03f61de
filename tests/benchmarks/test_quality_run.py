"""The bench of quality runs, goes on where it stopped, and its page comes from what is kept and nothing else."""

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks.quality import __main__ as command
from benchmarks.quality import report, results
from benchmarks.quality.cells import cells_of, kept_bytes
from benchmarks.quality.presets import PRESETS, Preset
from benchmarks.quality.results import HEADLINES
from benchmarks.quality.system import Shape
from benchmarks.quality.systems import ABLATIONS, SYSTEMS, make_system
from benchmarks.quality.tasks import MAKERS
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
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("quality")
    command.main([*SMOKE, "--out", str(folder)])
    torch.set_num_threads(threads)
    return folder


def test_a_cell_tells_what_it_is_of_and_what_it_cost(folder):
    found = results.read(folder)
    assert found.tasks() == ["potts"]
    for cell in found.cells:
        assert cell["training"]["steps"] >= 1 and cell["training"]["seconds"] >= 0.025
        assert cell["kept_MB"] > 0 and cell["parameters"] > 1000
        assert cell["bound"]["nats_per_token"] > 0.0
        settings = [(p["sampler"], p["evaluations"], p["temperature"]) for p in cell["points"]]
        assert len(set(settings)) == len(settings) >= 2
        assert all(0.0 <= p["measures"]["total_variation"] <= 1.0 for p in cell["points"])


def test_what_is_done_is_not_done_again(folder, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(command, "run_cell", refuse)
    command.main([*SMOKE, "--out", str(folder)])
    (folder / "potts.mdlm.seconds.0.json").rename(folder / "aside")
    with pytest.raises(AssertionError, match="trained again"):
        command.main([*SMOKE, "--out", str(folder)])
    (folder / "aside").rename(folder / "potts.mdlm.seconds.0.json")


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


def test_shards_share_the_cells():
    preset = PRESETS["small"]
    cells = cells_of(preset)
    parts = [cells[part::2] for part in range(2)]
    assert sorted(c.name for c in parts[0] + parts[1]) == sorted({c.name for c in cells})
    for word in ("2/2", "a", "1"):
        with pytest.raises(SystemExit):
            command.parser().parse_args(["--shard", word])


def test_presets_name_what_there_is():
    assert set(MAKERS) == set(HEADLINES)
    for preset in PRESETS.values():
        assert set(preset.tasks) <= set(MAKERS) and set(preset.systems) <= {*SYSTEMS, *ABLATIONS}
    # Trainings alone, of two processes and of one GPU.
    assert command.estimate(cells_of(PRESETS["small"]), PRESETS["small"]) / 2 < 60
    assert command.estimate(cells_of(PRESETS["gpu"]), PRESETS["gpu"]) < 20
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
            "seconds": 1.0,
            "measures": {"frechet": distance, "copies": 0.0},
            "samples": [[0] * 64] * 4,
        }
        return {
            "cell": {"task": "digits", "system": system, "budget": "seconds", "seed": seed},
            "parameters": 10,
            "training": {"steps": 5, "seconds": 40.0, "loss": 1.0},
            "kept_MB": 1.0,
            "bound": {"nats_per_token": 1.0, "standard_error": 0.1},
            "points": [point],
            "load": 0.5,
            "machine": {"gpu": None, "cpu": "a processor", "versions": {"torch": "0"}},
        }

    cells = [cell("ggm-hollow", 0, 2.0), cell("ggm-hollow", 1, 4.0)]
    cells += [cell("mdlm", 0, values.get("mdlm", 5.0)), cell("uniform", 0, 9.0)]
    data = {"digits": {"measures": {"frechet": 1.5}, "samples": [[0] * 64] * 4}}
    preset = {"seconds": 40.0, "samples": 8, "evaluator_seconds": 1.0}
    return results.Results(preset, cells, data)


def test_seeds_are_averaged_and_the_best_is_bold_whoever_it_is():
    table = report.curves(synthetic(), "digits", "seconds")
    assert "| ggm-hollow, s | **3 ± 1** |" in table and "| mdlm, s | 5 |" in table
    table = report.curves(synthetic(mdlm=2.5), "digits", "seconds")
    assert "| mdlm, s | **2.5** |" in table and "| ggm-hollow, s | 3 ± 1 |" in table
    assert "| mdlm | 3 (ggm-hollow, 4 evaluations) | 2.5 (mdlm, 4 evaluations) | 1.5 |" in report.glance(
        synthetic(mdlm=2.5)
    )


def test_dull_samples_are_not_the_best_at_a_glance():
    found = synthetic(mdlm=2.5)
    for cell in found.cells:
        cell["points"][0]["measures"]["entropy"] = 2.0 - 0.2 * (cell["cell"]["system"] == "mdlm")
    found.data["digits"]["measures"]["entropy"] = 2.0
    assert "2.5 (mdlm, 4 evaluations)" in report.glance(found)
    found.data["digits"]["measures"]["entropy"] = 2.2  # 0.4 above mdlm's, 0.2 above the others'
    told = report.glance(found)
    assert "mdlm" not in told and "| ggm-hollow | 3 (ggm-hollow, 4 evaluations) | 9 (uniform" in told


def kept_of_the_page() -> Path:
    return ROOT / re.search(r"kept in `(.*?)`", PAGE.read_text())[1]


def test_the_quality_page_is_made_from_the_results_it_names(tmp_path):
    report.main([str(kept_of_the_page()), "-o", str(tmp_path / "quality.md")])
    assert (tmp_path / "quality.md").read_text() == PAGE.read_text()
    made = {file.name for file in (tmp_path / "images").iterdir()}
    shown = {Path(address).name for address in re.findall(r"\]\((images/.*?)\)", PAGE.read_text())}
    assert made == shown
    assert all((ROOT / "docs" / "images" / name).is_file() for name in shown)
