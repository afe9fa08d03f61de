"""Runs that cannot go on say why in one line, and leave what they have."""

import errno
import os
import resource
import sys
from pathlib import Path

import pytest
from small_runs import trained, written
from torch.optim.swa_utils import AveragedModel

from ggm.commands.cli import main
from ggm.config import ConfigError
from ggm.files import write_text
from ggm.training.loop import Loop

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_a_loss_that_is_not_finite_stops_with_step_and_samples(tmp_path, capsys):
    config = written(tmp_path)
    # Weights explode with the first step, while the learning rate warms up.
    words = ["--set", "training.learning_rate=1e30", "--set", "log_every=1"]
    assert main(["train", str(config), *words, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("ggm: error: step 2: loss ")
    ids = error.split("sample ids ")[1].split(";")[0].split(", ")
    assert len({int(i) for i in ids}) == 8
    assert "last checkpoint: none" in error
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("name", ["weights", "averaged weights"])
def test_weights_that_are_not_finite_are_not_saved(name, tmp_path, monkeypatch):
    trained(tmp_path, max_steps=5)
    update = AveragedModel.update_parameters

    def spoilt(self, model):
        update(self, model)
        spoiled = model if name == "weights" else self.module
        spoiled.backbone.token.weight.data[3] = float("nan")

    monkeypatch.setattr(AveragedModel, "update_parameters", spoilt)
    monkeypatch.setattr(Loop, "_look", lambda self, saving: "")  # as if no loss had told of it
    folder = tmp_path / "run" / "checkpoints"
    with pytest.raises(FloatingPointError) as caught:
        trained(tmp_path, resume=True)
    last = folder / "step-000000005"
    assert str(caught.value) == f"step 10: got {name} that are not finite; last checkpoint: {last}"
    assert sorted(folder.iterdir()) == [folder / "best", last]


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(tmp_path, capsys):
    config = written(tmp_path)
    trained(tmp_path, max_steps=5)
    folder = tmp_path / "run" / "checkpoints"
    before = {path: path.read_bytes() for path in folder.glob("*/*")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a disk with little room: the kernel refuses to write beyond the first kilobytes of a file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        status = main(["train", str(config), "--resume", "--quiet"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert status == 1 and error.count("\n") == 1
    assert "the checkpoint could not be written" in error
    assert f"last good one: {folder / 'step-000000005'}" in error
    assert {path: path.read_bytes() for path in folder.glob("*/*")} == before
    assert not list(folder.glob(".*"))
    assert trained(tmp_path, resume=True).steps == 12


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.backbone.width=32"], "model.backbone.width: got 32; allowed: 16"),
        (["model.objective.form=summed"], "model.objective.form: got 'summed'; allowed: 'marginal'"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(overrides, words, tmp_path):
    trained(tmp_path, max_steps=2)
    with pytest.raises(ConfigError) as caught:
        trained(tmp_path, *overrides, resume=True)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.seed=4", "training.seed: got 4; allowed: 3"),
        ("training.batch_size=16", "training.batch_size: got 16; allowed: 8"),
        ("data.levels=5", "data.levels: got 5; allowed: 4"),
        ("data.held_out=16", "data.held_out: got 16; allowed: 360"),
        ("data={kind: tokens, source: x.npy, vocab_size: 4}", "data.kind: got 'tokens'; allowed: 'digits'"),
    ],
)
def test_a_run_goes_on_with_its_own_data_and_seed_only(override, told, tmp_path):
    trained(tmp_path, max_steps=2)
    out = tmp_path / "run"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as caught:
        trained(tmp_path, override, resume=True)
    assert str(caught.value) == f"{told}, that of the run to go on with ({out / 'config.yaml'})"
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    # What does not choose sequences and noise may be changed.
    free = ["training.learning_rate=1e-3", "training.steps=3", "accumulation=2", "checkpoint_every=1"]
    assert trained(tmp_path, *free, resume=True).steps == 3


def test_a_run_goes_on_with_its_own_tokenizer_only(tmp_path):
    words = ["data={kind: pydoc, tokenizer: char}", "training.steps=1"]
    trained(tmp_path, *words)
    kept = tmp_path / "run" / "tokenizer.json"
    before = kept.read_bytes()
    with pytest.raises(
        ConfigError, match=r"^data\.tokenizer: got 'bpe:300'; allowed: 'char', that of the run"
    ):
        trained(tmp_path, *words, "data.tokenizer=bpe:300", "training.steps=2", resume=True)
    assert kept.read_bytes() == before
    assert "tokenizer: char" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("progress.json", '{"step": 5, ', "{path}: not JSON: "),
        ("progress.json", "[]", "{path}: got list; allowed: an object of JSON"),
        ("progress.json", "{{}}", "{path}: got {{}}; allowed: step, an integer from 1 to 2147483647"),
        ("config.json", '{"vocab', "{path}: not JSON: "),
        ("config.json", "[1]", "{path}: got list; allowed: an object of JSON"),
        ("optimizer.pt", "", "{path}: damaged, or not of this model"),
        ("../../metrics.jsonl", '{"loss": 1.0}', "metrics.jsonl: line 1: got no step; allowed: "),
        ("../../metrics.jsonl", "5", "metrics.jsonl: line 1: got no step; allowed: "),
        ("../../config.yaml", "a: [", "config.yaml: not YAML"),
        ("../../config.yaml", "out: x\nleft: 1", "config.yaml: left: unknown key"),
    ],
)
def test_damaged_files_of_a_run_are_named_in_one_line(name, text, told, tmp_path, capsys):
    checkpoint = trained(tmp_path, max_steps=2).checkpoint
    (
        checkpoint / "digests.json"
    ).unlink()  # as in a checkpoint of an earlier version, where nothing else tells
    path = checkpoint / name
    path.write_text(text.replace("{{", "{").replace("}}", "}"))
    assert main(["train", str(written(tmp_path)), "--resume", "--quiet"]) == 1
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("ggm: error: ")
    assert told.format(path=path) in error


@pytest.mark.parametrize(("tracker", "name"), [("none", "metrics.jsonl"), ("tensorboard", "tensorboard")])
def test_a_full_disk_between_checkpoints_is_told_in_one_line(tracker, name, tmp_path, capfd):
    trained(tmp_path, max_steps=5)
    folder = tmp_path / "run" / "checkpoints"
    words = ["--set", f"tracker={tracker}", "--set", "checkpoint_every=1000", "--set", "training.steps=1000"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        status = main(
            ["train", str(written(tmp_path)), "--resume", "--quiet", "--set", "log_every=1", *words]
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capfd.readouterr().err
    told = f"ggm: error: {tmp_path / 'run' / name}: could not be written: File too large; last checkpoint: "
    assert status == 1 and error == f"{told}{folder / 'step-000000005'}\n"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.backbone.grid=[5, 5]", "backbone.grid: got (5, 5); allowed: extents whose product is 64"),
        (
            "model.backbone={heads: 2, width: 12, positions: rotary, grid: [8, 8]}",
            "backbone.width: got 12, heads of 6, with positions 'rotary' on 2 axes; allowed: heads of multiples",
        ),
        ("model.noise_probs=[0.1, 0.1, 0.1, 0.1]", "noise_probs: got a sum of 0.4; allowed: 1 within 1e-3"),
        ("model.noise_probs=[1.5, -0.5, 0, 0]", "noise_probs: got 1.5; allowed: 0 to 1"),
    ],
)
def test_a_model_that_cannot_be_is_told_before_data_are_read(override, told, tmp_path, monkeypatch):
    monkeypatch.setattr("ggm.training.run.load_data", None)
    with pytest.raises(ConfigError) as caught:
        trained(tmp_path, override)
    assert str(caught.value).startswith(f"model.{told}")


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.noise_probs=[0.5, 0.5]", "model.noise_probs: got 2 probabilities; allowed: 4, one for each"),
        (
            "training.batch_size=100000",
            "training.batch_size: got 100000; allowed: at most the 1437 sequences",
        ),
        ("accumulation=3", "training.batch_size: got 8; allowed: multiples of processes x accumulation = 3"),
        ("tracker=wandb", "wandb is not installed"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(
    override, told, flags, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["train", str(written(tmp_path)), "--quiet", "--set", override, *flags]) == 1
    assert f"ggm: error: {told}" in capsys.readouterr().err
    out = tmp_path / "run"
    assert not out.exists() or [path.name for path in out.iterdir()] in ([], [".lock"])


def test_a_file_of_a_run_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "config.yaml"
    write_text(path, "first")

    def full(self, text, **_):
        with open(self, "w") as file:
            file.write(text[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"config\.yaml: could not be written: No space left on device$"):
        write_text(path, "second")
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["{config}", "--set", "training.lr=1"], "training.lr: unknown key"),
        (["{config}", "--set", "training.batch_size=1000000"], "at most the 1437 sequences"),
        (["{config}", "--set", "accumulation=3"], "multiples of processes x accumulation = 3"),
        (["{config}", "--set", "tracker=wandb"], "wandb is not installed: pip install 'ggm-kernels[wandb]'"),
        (["{config}", "--set", "data={kind: text, source: nothing.txt}"], "nothing.txt"),
        (["{config}", "--set", "out={config}"], "run.yaml"),
    ],
)
def test_errors_are_one_line(words, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    config = written(tmp_path)
    assert (
        main(["train", *(word.format(config=config) if "kind" not in word else word for word in words)]) == 1
    )
    error = capsys.readouterr().err
    assert error.startswith("ggm: error: ") and told in error
    assert error.count("\n") == 1
