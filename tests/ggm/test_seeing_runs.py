"""What a run shows of its learning: samples, throughput, the loss at once, the best checkpoint, a picture."""

import json
import re

import numpy
import pytest
import torch
from processes import finish, start
from small_runs import trained, written

from ggm import GGM
from ggm.commands.cli import main
from ggm.commands.plot import smoothed
from ggm.training import loop as training_loop
from ggm.training.checkpoints import Checkpoints, read_progress
from ggm.training.metrics import read_metrics
from ggm.training.previews import draw

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def told(out) -> dict[int, dict]:
    return {line["step"]: line for line in read_metrics(out / "metrics.jsonl")}


def test_pictures_and_throughput_are_in_metrics_and_tensorboard(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(tmp_path, "tracker=tensorboard", "samples=4")
    out = tmp_path / "run"
    lines = told(out)
    assert {step for step, line in lines.items() if "samples" in line} == {5, 10, 12}  # the checkpoints
    assert {step for step, line in lines.items() if "tokens_per_second" in line} == {1, 2, 4, 5, 6, 8, 10, 12}
    assert all(line["tokens_per_second"] > 0 for line in lines.values() if "seconds" in line)
    shown = numpy.asarray(Image.open(out / lines[12]["samples"]))
    model = GGM.from_pretrained(out / "checkpoints" / "step-000000012")
    expected = model.sample(4, training_loop_sampling(model), seed=0).tokens.view(4, 8, 8) * 255 // 3
    corner = torch.tensor(shown)[:64, :64][::8, ::8]
    assert torch.equal(corner.long(), expected[0])
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("samples")] == [5, 10, 12]
    speeds = [event.value for event in events.Scalars("tokens_per_second")]
    assert speeds == pytest.approx(
        [line["tokens_per_second"] for line in lines.values() if "seconds" in line]
    )


def training_loop_sampling(model):
    from ggm import SamplingConfig

    return SamplingConfig(sites_per_step=max(model.config.least_sites, model.chain.length // 16))


def test_texts_are_in_metrics_and_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    source = tmp_path / "a.txt"
    source.write_text("to be or not to be, that is the question. " * 60)
    data = f"data={{kind: text, source: {source}, tokenizer: char, held_out: 4}}"
    words = (data, "model.chain.length=32", "model.masked_counts=[2]", "training.steps=2")
    trained(tmp_path, *words, "tracker=tensorboard", "samples=3")
    samples = told(tmp_path / "run")[2]["samples"]
    known = set(source.read_text())
    assert len(samples) == 3
    for sample in samples:
        characters = sample.replace("<|endoftext|>", ".")  # a token like the others
        assert len(characters) == 32 and set(characters) <= known
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (event,) = events.Tensors("samples/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert all(f"    {sample.splitlines()[0]}" in text for sample in samples if sample.strip())


def test_no_samples_if_none_are_wanted(tmp_path):
    trained(tmp_path, "samples=0", max_steps=5)
    assert not (tmp_path / "run" / "samples").exists()
    assert all("samples" not in line for line in told(tmp_path / "run").values())


def test_sharded_processes_draw_the_samples_of_one(tmp_path):
    words = ["--set", "training.steps=3", "--set", "samples=2"]
    one, two = written(tmp_path, out="one"), written(tmp_path, out="two", sharding="fsdp2")
    finish(start(["train", str(one), "--quiet", *words], tmp_path / "one.log"), tmp_path / "one.log")
    finish(start(["train", str(two), "--quiet", *words], tmp_path / "log", 2), tmp_path / "log")
    pictures = [(tmp_path / out / told(tmp_path / out)[3]["samples"]).read_bytes() for out in ("one", "two")]
    assert pictures[0] == pictures[1]


def test_the_first_loss_is_told_at_once_and_later_ones_by_time(tmp_path, capsys, monkeypatch):
    from ggm import progress
    from ggm.training.config import read_config
    from ggm.training.run import run

    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    monkeypatch.setattr(training_loop, "_TOLD_EVERY", 0.0)
    run(read_config(written(tmp_path), ["log_every=1000", "checkpoint_every=1000", "samples=0"]))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 12
    losses = [float(match[1]) for line in lines if (match := re.search(r"tokens/s, loss ([\d.]+), ", line))]
    first, *later = [line["loss"] for line in told(tmp_path / "run").values()]
    means = [sum(later[:count]) / count for count in range(1, len(later))]
    # Between the looks at the first and at the last step: the mean of the steps since.
    for expected in (first, *means):
        assert any(abs(expected - loss) < 1e-3 for loss in losses), expected
    assert {step for step, line in told(tmp_path / "run").items() if "held_out_loss" in line} == {1, 12}


def test_the_best_checkpoint_stays_beside_the_last(tmp_path, monkeypatch, capsys):
    losses = iter(
        [9.0, 3.0, 4.0, 2.0, 7.0, 8.0, 9.0, float("nan")]
    )  # the first is a look without a checkpoint
    evaluate = training_loop.evaluate
    monkeypatch.setattr(
        training_loop, "evaluate", lambda *words: evaluate(*words) | {"held_out_loss": next(losses)}
    )
    words = ("checkpoint_every=2", "log_every=1000", "keep_checkpoints=1", "samples=0")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", 1)
    trained(tmp_path, *words, max_steps=4)
    best = checkpoints.best()
    assert best is not None and read_progress(best)[0] == 2
    trained(
        tmp_path, *words, resume=True, max_steps=10
    )  # it looks at its first step, too, without a checkpoint
    # Looks of the second part: at step 5, and with checkpoints at 6, 8 and 10.
    assert read_progress(best)[0] == 2
    assert {path.name for path in best.parent.iterdir()} == {"best", "step-000000010", "step-000000002"}
    assert GGM.from_pretrained(best).config == GGM.from_pretrained(checkpoints.latest()).config
    assert main(["sample", str(best), "--out", str(tmp_path / "a.npy")]) == 0
    assert json.loads((tmp_path / "a.npy.meta.json").read_text())["step"] == read_progress(best)[0]
    assert main(["info", str(tmp_path / "run")]) == 0
    assert f"{best}: step {read_progress(best)[0]}" in capsys.readouterr().out


def test_a_better_checkpoint_takes_the_place_of_the_best(tmp_path):
    trained(tmp_path, "checkpoint_every=2", "keep_checkpoints=1")
    lines = told(tmp_path / "run")
    saved = {step: lines[step]["held_out_loss"] for step in range(2, 13, 2)}
    best = Checkpoints(tmp_path / "run" / "checkpoints", 1).best()
    assert best is not None and read_progress(best)[0] == min(saved, key=saved.__getitem__)
    assert json.loads((best / "progress.json").read_text())["held_out_loss"] == min(saved.values())


@pytest.mark.parametrize("speed", [True, False])
def test_plots(speed, tmp_path, capsys):
    from PIL import Image

    run = tmp_path / "run"
    run.mkdir()
    lines = [{"step": step, "loss": 5.0 / step} for step in range(1, 101)]
    for line in lines[::10]:
        line |= {"held_out_loss": 6.0 / line["step"]} | ({"tokens_per_second": 1e3} if speed else {})
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert main(["plot", str(run)]) == 0
    assert capsys.readouterr().out == f"100 steps: {run / 'plot.png'}\n"
    picture = numpy.asarray(Image.open(run / "plot.png").convert("RGB"))
    assert (abs(picture.astype(int) - [0xC1, 0x44, 0x0E]).sum(axis=2) < 30).sum() > 100  # held out
    assert main(["plot", str(run), "--out", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["plot", str(run), "--out", str(tmp_path / "without_ending")]) == 0
    assert (tmp_path / "without_ending").read_bytes()[:4] == b"\x89PNG"
    assert main(["plot", str(run), "--out", str(run)]) == 1
    assert (
        capsys.readouterr().err == f"ggm: error: --out: got the folder {run}; allowed: the name of a file\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"run", "b.png", "without_ending"}
    assert main(["plot", str(tmp_path)]) == 1
    assert "no steps in metrics.jsonl" in capsys.readouterr().err


def test_smoothed():
    assert smoothed([4.0, 2.0, 0.0, 6.0], 2) == [4.0, 3.0, 1.0, 3.0]
    assert smoothed([1.0, 2.0], 10) == [1.0, 1.5]


def test_samples_get_better_from_the_same_noise(tmp_path):
    trained(tmp_path, max_steps=2)
    model = GGM.from_pretrained(Checkpoints(tmp_path / "run" / "checkpoints", 1).latest())
    from ggm.data.sources import DigitsData, load_data

    data = load_data(DigitsData(levels=4), 64)
    few, many = draw(model, data, 4), draw(model, data, 9)
    assert few is not None and many is not None and few.picture is not None and many.picture is not None
    assert torch.equal(few.picture[:64, :64], many.picture[:64, :64])
    assert draw(model, data, 0) is None
