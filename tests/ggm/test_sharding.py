"""Sharded training: two processes have the curve, and write the checkpoints, of one that holds everything."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import finish, start

from ggm import GGM
from ggm.config import ConfigError
from ggm.training.checkpoints import Checkpoints
from ggm.training.metrics import read_metrics
from ggm.training.run import _launched_sharded

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)

RUN = """\
data: {kind: digits}
training: {steps: 10, batch_size: 8, seed: 3, warmup: 0.2}
checkpoint_every: 4
log_every: 3
tracker: none
"""
MODELS = {
    "masked": """\
model:
  chain: {length: 64, sweeps: 2}
  backbone: {kind: masked, width: 16, depth: 2, heads: 2}
  objective: {noise_ratio: 10.0}
  masked_counts: [8, 4]
  frozen_share: 0.5
""",
    # A width that two processes cannot halve, a head that is the embedding, candidates that are drawn.
    "hollow": """\
model:
  chain: {length: 64, sweeps: 2}
  backbone: {kind: hollow, width: 15, depth: 1, mixing: 1, heads: 3, tied: true}
  objective: {form: marginal, candidates: 3, noise_ratio: 3.0}
  masked_counts: [64]
  frozen_share: 0.5
  noise_probs: [0.4, 0.3, 0.2, 0.1]
""",
}


class Runs:
    """Runs of one model in one folder."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model

    def train(self, out: str, *words: str, count: int = 1, **overrides: object) -> str:
        config = self.folder / f"{out}.yaml"
        config.write_text(f"out: {self.folder / out}\n{RUN}{MODELS[self.model]}")
        settings = [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
        log = self.folder / f"{out}.log"
        words = ("train", str(config), "--quiet", *settings, *words)
        return finish(start(list(words), log, count, told=True), log)

    def curve(self, out: str) -> torch.Tensor:
        lines = list(read_metrics(self.folder / out / "metrics.jsonl"))
        assert [line["step"] for line in lines] == list(range(1, 11))
        return torch.tensor([[line["loss"], line["gradient_norm"]] for line in lines])

    def held_out(self, out: str) -> torch.Tensor:
        """Losses at the looks that every run has, wherever it was interrupted."""
        lines = read_metrics(self.folder / out / "metrics.jsonl")
        return torch.tensor([line["held_out_loss"] for line in lines if line["step"] in (3, 4, 6, 8, 9, 10)])

    def checkpoint(self, out: str) -> Path:
        found = Checkpoints(self.folder / out / "checkpoints", 2).latest()
        assert found is not None
        return found


@pytest.fixture(params=["hollow", pytest.param("masked", marks=pytest.mark.slow)])
def runs(request, tmp_path):
    return Runs(tmp_path, request.param)


def assert_same_run(runs: Runs, out: str, reference: str) -> None:
    torch.testing.assert_close(runs.curve(out), runs.curve(reference), rtol=2e-4, atol=0)
    torch.testing.assert_close(runs.held_out(out), runs.held_out(reference), rtol=2e-4, atol=0)


def test_two_processes_share_a_run_and_its_checkpoints_with_one(runs):
    runs.train("one")
    told = runs.train("two", count=2, sharding="fsdp2")
    shares = [[float(share) for share in line.split()[1:]] for line in told.splitlines() if "holds" in line]
    assert len(shares) == 2 and all(0.4 < share < 0.6 for of_process in shares for share in of_process), told
    assert_same_run(runs, "two", "one")
    for weights in ("averaged", "training"):
        one, two = (GGM.from_pretrained(runs.checkpoint(out), weights=weights) for out in ("one", "two"))
        torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=1e-3, atol=1e-5)
    one, two = (
        torch.load(runs.checkpoint(out) / "optimizer.pt", weights_only=True) for out in ("one", "two")
    )
    assert one["param_groups"] == two["param_groups"]
    torch.testing.assert_close(two["state"], one["state"], rtol=1e-3, atol=1e-6)
    # Another seed is another curve: the comparison can fail.
    runs.train("other", **{"training.seed": 4})
    with pytest.raises(AssertionError, match="not close"):
        assert_same_run(runs, "other", "one")


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    runs = Runs(tmp_path, "hollow")
    runs.train("whole")
    runs.train("gathered", "--max-steps", "5", count=2, sharding="fsdp2")
    runs.train("gathered", "--resume")
    assert_same_run(runs, "gathered", "whole")
    runs.train("spread", "--max-steps", "5")
    runs.train("spread", "--resume", count=2, sharding="fsdp2")
    assert_same_run(runs, "spread", "whole")


def test_a_run_that_goes_on_in_shards_takes_the_options_of_its_optimiser_from_its_file(tmp_path):
    runs = Runs(tmp_path, "hollow")
    runs.train("run", "--max-steps", "1")
    options = {"training.weight_decay": 5.0, "training.betas": "[0.5, 0.25]"}
    runs.train("run", "--resume", "--max-steps", "2", count=2, sharding="fsdp2", **options)
    groups = torch.load(runs.checkpoint("run") / "optimizer.pt", weights_only=True)["param_groups"]
    assert [group["weight_decay"] for group in groups] == [5.0, 0.0]
    assert [tuple(group["betas"]) for group in groups] == [(0.5, 0.25)] * 2


@pytest.mark.slow
def test_moments_that_were_not_handed_on_are_noticed(tmp_path):
    runs = Runs(tmp_path, "hollow")
    runs.train("whole")
    runs.train("forgetful", "--max-steps", "5")
    kept = runs.checkpoint("forgetful") / "optimizer.pt"
    moments = torch.load(kept, weights_only=True)
    for values in moments["state"].values():
        values["exp_avg"].zero_()
    torch.save(moments, kept)
    (kept.parent / "digests.json").unlink()  # as in a checkpoint of an earlier version: nothing tells
    runs.train("forgetful", "--resume", count=2, sharding="fsdp2")
    with pytest.raises(AssertionError, match="not close"):
        assert_same_run(runs, "forgetful", "whole")


@pytest.mark.slow
def test_accumulation_and_bf16_work_on_shards(tmp_path):
    runs = Runs(tmp_path, "masked")
    runs.train("whole", precision="bf16")
    runs.train("parts", count=2, sharding="fsdp2", precision="bf16", accumulation=2)
    torch.testing.assert_close(runs.curve("parts")[:, 0], runs.curve("whole")[:, 0], rtol=1e-2, atol=0)
    runs.train("fp32")
    assert not torch.equal(runs.curve("parts"), runs.curve("fp32"))


def test_one_process_has_nothing_to_shard(tmp_path):
    runs = Runs(tmp_path, "masked")
    runs.train("none")
    runs.train("alone", sharding="fsdp2")
    assert torch.equal(runs.curve("alone"), runs.curve("none"))


def test_the_launcher_may_ask_for_it(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match="got --fsdp_version 1; allowed: --fsdp_version 2"):
        _launched_sharded()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert _launched_sharded()
    assert os.environ["ACCELERATE_USE_FSDP"] == "false"
    assert not _launched_sharded()
