"""A run that an earlier version left is read and goes on: its samples to the byte, its losses to rounding."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
from processes import finish, start

from ggm.training.config import read_config
from ggm.training.metrics import read_metrics
from ggm.training.run import run

# `ggm train run.yaml --max-steps 8`; then `ggm sample run --count 4 --seed 5 --out samples.npy`, and, elsewhere,
# `ggm train run.yaml --resume`, whose last lines of metrics.jsonl are continued.jsonl.
OLD = Path(__file__).parents[1] / "fixtures" / "run_first_edition"

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def old_run(tmp_path, monkeypatch) -> Path:
    shutil.copytree(OLD, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_samples_are_the_same_bytes(old_run, tmp_path):
    log = tmp_path / "log"
    finish(start(["sample", "run", "--count", "4", "--seed", "5", "--out", "again.npy"], log), log)
    assert (tmp_path / "again.npy").read_bytes() == (OLD / "samples.npy").read_bytes()
    assert numpy.load(OLD / "samples.npy").shape == (4, 64)


def test_training_goes_on(old_run):
    run(read_config(old_run / "run.yaml"), resume=True, progress=False)
    lines = list(read_metrics(old_run / "metrics.jsonl"))
    before = (OLD / "metrics.jsonl").read_text().splitlines()
    assert [json.dumps(line) for line in lines[:8]] == before
    expected = [json.loads(line) for line in (OLD / "continued.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[8:]] == [line["step"] for line in expected]
    for line, wanted in zip(lines[8:], expected, strict=True):
        # Its average was one without warm-up, and is another one from here: what is told of it differs.
        of_the_average = {"held_out_loss", "calibration"}
        # What earlier versions did not tell; the first step of a part is looked at, too.
        new = {"seconds", "tokens_per_second", "samples"} | (of_the_average if line is lines[8] else set())
        assert set(line) - new == set(wanted) - new
        kept = {key: value for key, value in line.items() if key not in of_the_average | new}
        assert kept == pytest.approx({key: wanted[key] for key in kept}, rel=1e-4)


def test_the_losses_are_not_those_of_fresh_weights(old_run):
    """So that the comparison above can fail: without the checkpoint the same steps give other losses."""
    shutil.rmtree(old_run / "checkpoints")
    run(read_config(old_run / "run.yaml", ["model.chain.order_seed=1"]), progress=False)
    expected = [json.loads(line) for line in (OLD / "continued.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in read_metrics(old_run / "metrics.jsonl")][8:]
    assert losses != pytest.approx([line["loss"] for line in expected], rel=1e-4)
