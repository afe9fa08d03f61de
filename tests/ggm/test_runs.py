import fcntl
import json
import os
import pty
import random
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from processes import PATIENCE, finish, start, wait_for
from small_runs import curve, trained, written

from ggm import GGM, ChainConfig, GGMConfig, MaskedConfig, ObjectiveConfig
from ggm.training.checkpoints import Checkpoints
from ggm.training.config import read_config
from ggm.training.loop import evaluate
from ggm.training.metrics import Metrics, read_metrics
from ggm.training.run import run

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

ROOT = Path(__file__).parents[2]


def command(*words: str) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_run_leaves_checkpoints_that_are_models(tmp_path):
    result = trained(tmp_path, "tracker=tensorboard")
    assert result.steps == 12 and result.stopped_by is None
    out = tmp_path / "run"
    assert [step for step, _ in curve(out)] == list(range(1, 13))
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "best",
        "step-000000010",
        "step-000000012",
    ]
    assert list((out / "tensorboard").glob("events*"))
    averaged, training = (GGM.from_pretrained(result.checkpoint, weights=w) for w in ("averaged", "training"))
    assert averaged.config.vocab_size == 4
    assert not torch.equal(averaged.backbone.bias, training.backbone.bias)
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["held_out_loss"] > 0 and 0.5 < last["calibration"] < 2
    assert 0 < last["learning_rate"] < 2e-3 and last["gradient_norm"] > 0


def test_resumed_runs_go_on_as_if_nothing_had_been(tmp_path):
    whole = trained(tmp_path, out="whole")
    assert trained(tmp_path, max_steps=7).steps == 7
    with pytest.raises(ValueError, match="`resume` continues"):
        trained(tmp_path)
    parts = trained(tmp_path, resume=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    for name in ("model", "training"):
        file = f"{name}.safetensors"
        assert (parts.checkpoint / file).read_bytes() == (whole.checkpoint / file).read_bytes()
    assert trained(tmp_path, resume=True).steps == 12  # there is nothing left to do


def test_a_resumed_run_takes_the_options_of_its_optimiser_from_its_file(tmp_path):
    first = trained(tmp_path, max_steps=4)
    moments = torch.load(first.checkpoint / "optimizer.pt", weights_only=True)["state"]
    words = ["training.weight_decay=5.0", "training.betas=[0.5, 0.25]"]
    last = trained(tmp_path, *words, max_steps=5, resume=True)
    found = torch.load(last.checkpoint / "optimizer.pt", weights_only=True)
    assert [group["weight_decay"] for group in found["param_groups"]] == [5.0, 0.0]
    assert [tuple(group["betas"]) for group in found["param_groups"]] == [(0.5, 0.25)] * 2
    assert {int(values["step"]) for values in found["state"].values()} == {5}
    # The moments go on: a quarter of the squares is left, whatever is added.
    for key, values in moments.items():
        assert (found["state"][key]["exp_avg_sq"] >= 0.249 * values["exp_avg_sq"]).all()


def test_held_out_data_are_looked_at_in_passes_of_the_trainings_size(tmp_path, monkeypatch):
    sizes: dict[str, set[int]] = {"loss": set(), "calibration": set()}

    def spy(name):
        method = getattr(GGM, name)

        def spied(self, tokens, *words, **more):
            sizes[name].add(len(tokens))
            return method(self, tokens, *words, **more)

        monkeypatch.setattr(GGM, name, spied)

    spy("loss")  # training calls the model itself
    spy("calibration")
    trained(tmp_path, "accumulation=2", max_steps=2)
    assert sizes == {"loss": {4}, "calibration": {4}}


def test_what_is_told_of_held_out_data_does_not_depend_on_the_size_of_a_pass():
    torch.manual_seed(0)
    tokens = torch.randint(5, (13, 8))
    backbone = MaskedConfig(width=16, depth=1, heads=2)
    objective = ObjectiveConfig(candidates=3)
    model = GGM(GGMConfig(5, ChainConfig(8, sweeps=2), backbone, objective, (4,), frozen_share=0.5))
    torch.nn.init.normal_(model.backbone.head, std=0.1)
    whole = evaluate(model, tokens, len(tokens))
    assert whole["held_out_loss"] == pytest.approx(model.loss(tokens, seed=0, step=0).item(), rel=1e-6)
    assert whole["calibration"] == pytest.approx(float(model.calibration(tokens, seed=0).mean()), rel=1e-6)
    for batch in (1, 4, 12):
        assert evaluate(model, tokens, batch) == pytest.approx(whole, rel=1e-5)


def test_accumulation_does_not_change_the_curve(tmp_path):
    trained(tmp_path, out="whole")
    trained(tmp_path, "accumulation=4", out="parts")
    whole, parts = (torch.tensor(curve(tmp_path / out)) for out in ("whole", "parts"))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=0)


def test_bf16_follows_fp32(tmp_path):
    trained(tmp_path, out="whole")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    trained(tmp_path, "precision=bf16", out="half")
    whole, half = (torch.tensor(curve(tmp_path / out)) for out in ("whole", "half"))
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0)
    assert not torch.equal(half, whole)


def test_kills_at_any_moment_lose_no_checkpoint(tmp_path):
    """Kills, most of them in the middle of a checkpoint, between parts of a run that saves after every step."""
    steps = ["training.steps=100000", "checkpoint_every=1", "data.held_out=16"]
    settings = [word for step in steps for word in ("--set", step)]
    words = ["train", str(written(tmp_path)), "--quiet", "--resume", *settings]
    folder, log = tmp_path / "run" / "checkpoints", tmp_path / "run.log"
    checkpoints, moments = Checkpoints(folder, 2), random.Random(0)
    kills = halves = saved = 0
    while kills < 6 or halves < 3:
        assert kills < 40, "no kill came while a checkpoint was written"
        (process,) = start(words, log)
        wait_for(lambda at=saved: step_of(checkpoints) > at, [process], log)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        before, saved = saved, step_of(checkpoints)
        assert saved > before
        GGM.from_pretrained(checkpoints.latest())
        # No line of the curve is missing: it is at most ahead of the checkpoint.
        assert curve(tmp_path / "run")[-1][0] >= saved
        kills += 1
        halves += bool(list(folder.glob(".step-*")))
    stop = saved + 2
    trained(tmp_path, *steps, resume=True, max_steps=stop)
    trained(tmp_path, *steps, out="whole", max_steps=stop)
    killed, whole = curve(tmp_path / "run"), curve(tmp_path / "whole")
    assert [step for step, _ in killed] == list(range(1, stop + 1))
    torch.testing.assert_close(torch.tensor(killed), torch.tensor(whole), rtol=1e-4, atol=0)
    assert not list(folder.glob(".*"))


def step_of(checkpoints: Checkpoints) -> int:
    last = checkpoints.latest()
    return 0 if last is None else int(last.name.removeprefix("step-"))


def test_sigterm_saves_and_ends_well(tmp_path):
    config = written(tmp_path, checkpoint_every="100000").read_text()
    (tmp_path / "run.yaml").write_text(config.replace("checkpoint_every: 5\n", "").replace("12", "100000"))
    log = tmp_path / "run.log"
    (process,) = start(["train", str(tmp_path / "run.yaml"), "--quiet"], log)
    wait_for(lambda: len(curve(tmp_path / "run")) > 3, [process], log)
    process.terminate()
    told = finish([process], log)
    assert told.startswith("stopped by SIGTERM, --resume continues; ")
    saved = Checkpoints(tmp_path / "run" / "checkpoints", 2).latest()
    assert saved is not None and str(saved) in told
    assert int(saved.name.removeprefix("step-")) == curve(tmp_path / "run")[-1][0]


def test_half_written_checkpoints_are_never_seen(tmp_path):
    trained(tmp_path, max_steps=5)
    folder = tmp_path / "run" / "checkpoints"
    (folder / ".step-000000009-123").mkdir()
    saved = Checkpoints(folder, 2).latest()
    assert saved is not None and saved.name == "step-000000005"
    trained(tmp_path, resume=True)
    assert not list(folder.glob(".*"))


def test_wandb_works_offline_and_tells_in_one_line_what_is_missing(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    words = ["-m", "ggm", "train", str(written(tmp_path)), "--set", "tracker=wandb", "--quiet"]
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    process = command(*words)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("ggm: error: tracker: wandb: No API key configured")
    monkeypatch.setenv("WANDB_MODE", "offline")
    process = command(*words)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_the_bar_tells_speed_time_left_and_calibration_in_80_columns(tmp_path):
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    (process,) = start(
        ["train", str(written(tmp_path)), "--set", "training.steps=60"], Path(os.ttyname(terminal))
    )
    shown = b""
    while process.is_alive() or select.select([master], [], [], 0)[0]:
        if select.select([master], [], [], 0.1)[0]:
            shown += os.read(master, 2**16)
    assert process.exitcode == 0, shown
    frames = [frame for frame in re.split(r"[\r\n]+", shown.decode()) if "tokens/s" in frame]
    numbers = r" *\d+%\|.*\| \d\d:\d\d left, \d+k tokens/s, loss \d\.\d{3}, calibration \d\.\d\d, held out \d\.\d{3}"
    assert frames and all(re.fullmatch(numbers, frame) and len(frame) < 80 for frame in frames), frames
    assert frames[-1].startswith("100%")
    for side in (master, terminal):
        os.close(side)


def test_metrics_survive_a_line_that_was_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    with Metrics(path, 1) as metrics:
        metrics.write([{"step": 2, "loss": 0.5}])
    assert [dict(line) for line in read_metrics(path)] == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.5}]


def test_a_run_leaves_its_configuration_with_every_default(tmp_path):
    config = read_config(written(tmp_path), ["data.levels=4", "training.steps=2", "training.seconds=.inf"])
    run(config, progress=False)
    assert read_config(tmp_path / "run" / "config.yaml") == config
    assert "order_seed: 0" in (tmp_path / "run" / "config.yaml").read_text()
