"""What docs/training.md says is so."""

import dataclasses
import re
from pathlib import Path

import torch

from ggm import GGM
from ggm.training.config import RunConfig

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def test_the_loop_runs_and_learns_and_the_export_goes_on(tmp_path, monkeypatch):
    loop, further = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    torch.manual_seed(0)
    names: dict = {}
    exec(loop, names)
    model, data = names["model"], names["data"]
    assert names["samples"].shape == (5, 4)
    torch.manual_seed(0)
    fresh = GGM(model.config)
    with torch.no_grad():
        assert model.loss(data, 1, 0) < 0.8 * fresh.loss(data, 1, 0)
    monkeypatch.chdir(tmp_path)
    exec(further, names)
    assert names["further"].training_weights is not None


def test_the_table_names_all_keys():
    table = PAGE.split("## The file")[1].split("\n\n")[1]
    named = set(re.findall(r"`([a-z_.]+)`", " ".join(row.split("|")[1] for row in table.splitlines()[2:])))
    assert {name.partition(".")[0] for name in named} == {
        field.name for field in dataclasses.fields(RunConfig)
    }
    model = {field.name for field in dataclasses.fields(RunConfig(out="").model)}
    assert {name.partition(".")[2] for name in named} - {""} <= model
