import copy
import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ggm import GGM, ChainConfig, GGMConfig, MaskedConfig, ObjectiveConfig, TrainingConfig, train
from ggm.hub import AVERAGED, TRAINING, complete, find, write_weights

CONFIG = GGMConfig(
    vocab_size=5,
    chain=ChainConfig(length=6, sweeps=3),
    backbone=MaskedConfig(width=16, depth=2, heads=2, positions="both", grid=(2, 3)),
    objective=ObjectiveConfig("marginal", candidates=2, noise_ratio=8.0),
    masked_counts=(1, 4),
    noise_probs=(0.4, 0.3, 0.1, 0.1, 0.1),
)
DATA = torch.randint(5, (9, 6), generator=torch.Generator().manual_seed(0))


def model(tied: bool = False) -> GGM:
    torch.manual_seed(0)
    backbone = dataclasses.replace(CONFIG.backbone, tied=tied)
    made = GGM(dataclasses.replace(CONFIG, backbone=backbone))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("tied", [False, True])
def test_exported_models_agree_and_train_further(tied, tmp_path):
    ours = model(tied)
    ours.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    loaded = GGM.from_pretrained(tmp_path)
    assert loaded.config == ours.config
    assert torch.equal(loaded.sample(4, seed=0).tokens, ours.sample(4, seed=0).tokens)
    loss = loaded.loss(DATA, 0, 0)
    assert torch.equal(loss, ours.loss(DATA, 0, 0))
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loss.backward()
    optimizer.step()
    assert loaded.loss(DATA, 0, 0) < loss
    if tied:
        assert loaded.backbone.head_weight is loaded.backbone.token.weight


def test_weights_without_averaging_lie_beside(tmp_path):
    model(tied=True).save_pretrained(tmp_path)
    raw = model(tied=True)
    with torch.no_grad():
        raw.backbone.bias.add_(1.0)
    write_weights(raw, tmp_path / TRAINING)
    averaged, training = (GGM.from_pretrained(tmp_path, weights=kind) for kind in ("averaged", "training"))
    assert torch.equal(training.backbone.bias, averaged.backbone.bias + 1.0)
    with pytest.raises(ValueError, match="allowed: averaged, training"):
        GGM.from_pretrained(tmp_path, weights="best")


FIRST = TrainingConfig(steps=3, batch_size=4, ema_decay=0.9)
FURTHER = TrainingConfig(steps=2, batch_size=4, ema_decay=0.9, seed=1)


def weights_of(made: GGM) -> list[torch.Tensor]:
    return list(made.state_dict().values())


def assert_same(first, second) -> None:
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("tied", [False, True])
def test_an_average_is_saved_with_what_it_averages(tied, tmp_path):
    raw = model(tied)
    averaged = train(raw, DATA, FIRST).model
    averaged.save_pretrained(tmp_path / "first")
    # Loaded and saved again, into another folder and over itself, nothing is lost.
    GGM.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    GGM.from_pretrained(tmp_path / "second").save_pretrained(tmp_path / "second")
    for folder in (tmp_path / "first", tmp_path / "second"):
        assert_same(weights_of(GGM.from_pretrained(folder)), weights_of(averaged))
        training = GGM.from_pretrained(folder, weights="training")
        assert_same(weights_of(training), weights_of(raw))
        assert training.training_weights is None
        assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", AVERAGED, TRAINING}
    assert not torch.equal(averaged.backbone.bias, raw.backbone.bias)


def test_weights_and_their_average_train_further(tmp_path):
    raw = model()
    averaged = train(raw, DATA, FIRST).model
    averaged.save_pretrained(tmp_path)
    loaded = GGM.from_pretrained(tmp_path)
    result = train(loaded, DATA, FURTHER).model
    train(raw, DATA, FURTHER)
    assert_same(weights_of(loaded), weights_of(raw))
    assert_same(list(result.training_weights.values()), weights_of(loaded))
    assert loaded.training_weights is None


def test_an_average_goes_on_from_where_it_was(tmp_path):
    averaged = train(model(), DATA, FIRST).model
    averaged.save_pretrained(tmp_path)
    loaded = GGM.from_pretrained(tmp_path)
    once = TrainingConfig(steps=1, batch_size=4, ema_decay=0.9, seed=1)
    result = train(loaded, DATA, once).model
    for before, last, after in zip(weights_of(averaged), weights_of(loaded), weights_of(result), strict=True):
        torch.testing.assert_close(after, 0.9 * before + 0.1 * last)


def steps_of_ones_own(loaded: GGM) -> None:
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-2)
    for step in range(2):
        loaded.loss(DATA, 3, step).backward()
        optimizer.step()


def weights_loaded(loaded: GGM) -> None:
    torch.manual_seed(1)
    loaded.load_state_dict(GGM(loaded.config).state_dict())


def one_number(loaded: GGM) -> None:
    loaded.backbone.head.data[1, 2] += 1e-3  # which the version of the tensor does not tell


@pytest.mark.parametrize("change", [steps_of_ones_own, weights_loaded, one_number])
def test_weights_that_were_changed_are_no_average_any_more(change, tmp_path):
    train(model(), DATA, FIRST).model.save_pretrained(tmp_path / "first")
    loaded = GGM.from_pretrained(tmp_path / "first")
    change(loaded)
    own = {name: value.clone() for name, value in loaded.state_dict().items()}
    loaded.save_pretrained(tmp_path / "second")
    assert not (tmp_path / "second" / TRAINING).exists()
    fresh = GGM(loaded.config)
    fresh.load_state_dict(own)
    again = GGM.from_pretrained(tmp_path / "second")
    # Training goes on from the weights as they are.
    expected, *found = (train(made, DATA, FURTHER).model for made in (fresh, loaded, again))
    for result in found:
        assert_same(weights_of(result), weights_of(expected))


def test_weights_that_were_moved_or_copied_are_the_average_still(tmp_path):
    train(model(), DATA, FIRST).model.save_pretrained(tmp_path)
    loaded = GGM.from_pretrained(tmp_path)
    unaveraged = GGM.from_pretrained(tmp_path, weights="training").state_dict()
    loaded.loss(DATA, 0, 0).backward()  # without a step
    loaded.sample(1, seed=0)
    copies = [copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), loaded.bfloat16().float().to("cpu")]
    for copied in copies:
        assert all(torch.equal(copied.training_weights[name], unaveraged[name]) for name in unaveraged)
    one_number(loaded)
    assert loaded.float().training_weights is None


def test_weights_without_averaging_of_another_model_are_not_left_or_taken(tmp_path):
    train(model(), DATA, FIRST).model.save_pretrained(tmp_path)
    other = GGM(dataclasses.replace(CONFIG, backbone=MaskedConfig(width=8, depth=1, heads=1)))
    write_weights(other, tmp_path / TRAINING)
    with pytest.raises(ValueError, match=r"training\.safetensors: not the weights of this model"):
        GGM.from_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    assert not (tmp_path / TRAINING).exists()
    assert GGM.from_pretrained(tmp_path).training_weights is None


@pytest.mark.parametrize("with_training", [False, True])
def test_both_are_fetched_from_the_hub_if_they_are_there(with_training, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import hub_mixin
    from huggingface_hub.errors import EntryNotFoundError

    averaged = train(model(), DATA, FIRST).model
    if not with_training:
        averaged.training_weights = None
    averaged.save_pretrained(tmp_path)

    def download(repo_id, filename, **_):
        if not (tmp_path / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **_: str(tmp_path))
    monkeypatch.setattr(
        hub_mixin, "hf_hub_download", lambda repo_id, filename, **_: download(repo_id, filename)
    )
    loaded = GGM.from_pretrained("someone/digits")
    assert_same(weights_of(loaded), weights_of(averaged))
    assert (loaded.training_weights is not None) == with_training


def test_weights_without_averaging_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    import safetensors.torch

    averaged = train(model(), DATA, FIRST).model
    averaged.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()  # as the package of the Hub does before it saves
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    save = safetensors.torch.save_file

    def full(weights, path, **options):
        save(weights, path, **options)
        if "training" in Path(path).name:
            raise safetensors.SafetensorError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(safetensors.SafetensorError):
        averaged.save_pretrained(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    names = ["step-000000005", "step-999999999", "step-1000000000", "step-2147483647"]
    for name in (*names, ".step-3", "best"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in complete(tmp_path / "checkpoints")] == names
    assert find(tmp_path).name == names[-1]


def test_a_later_save_replaces_the_configuration(tmp_path):
    model().save_pretrained(tmp_path)
    other = GGM(dataclasses.replace(CONFIG, masked_counts=(2,)))
    other.save_pretrained(tmp_path)
    assert GGM.from_pretrained(tmp_path).config == other.config


def test_push_uploads_the_folder(monkeypatch):
    from huggingface_hub import hub_mixin

    uploaded = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, folder_path, **_):
            uploaded.update({path.name: path.read_bytes() for path in folder_path.iterdir()})
            return "there"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    assert model().push_to_hub("someone/digits") == "there"
    assert json.loads(uploaded["config.json"])["vocab_size"] == 5
    assert TRAINING not in uploaded
    train(model(), DATA, FIRST).model.push_to_hub("someone/digits")
    assert uploaded["model.safetensors"] and uploaded[TRAINING] and b"2405.17035" in uploaded["README.md"]


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vocab_size"], config["noise_probs"] = 7, None
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="not the weights of this model") as caught:
        GGM.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({**config, "colour": "red"}))
    with pytest.raises(ValueError, match="colour: unknown key"):
        GGM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"rubbish")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model\.safetensors: not the weights"):
        GGM.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        GGM.from_pretrained(tmp_path)


def run_without(packages: str, code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a program to which packages are not installed."""
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({packages.split()!r}))\n"
    command = [sys.executable, "-c", blocked + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_folders_need_safetensors_alone(tmp_path):
    """What is written without the package of the Hub is what is written with it, and either reads it."""
    ours, folder = model(), tmp_path / "with"
    ours.training_weights = {name: value + 1 for name, value in ours.state_dict().items()}
    ours.save_pretrained(folder)
    code = """
import torch
from ggm import GGM
from ggm.extras import MissingExtraError
model = GGM.from_pretrained(sys.argv[1])
model.save_pretrained(sys.argv[2])
torch.save((model.state_dict(), GGM.from_pretrained(sys.argv[2], weights="training").state_dict()), sys.argv[3])
for call in (
    lambda: model.push_to_hub("x"), lambda: GGM.from_pretrained("x"),
    lambda: model.save_pretrained(sys.argv[2], push_to_hub=True),
):
    try:
        call()
    except MissingExtraError as error:
        assert str(error) == "huggingface_hub is not installed: pip install 'ggm-kernels[hub]'", error
    else:
        raise AssertionError
"""
    packages = "huggingface_hub accelerate yaml tokenizers datasets"
    done = run_without(packages, code, *(str(tmp_path / name) for name in ("with", "without", "weights.pt")))
    assert done.returncode == 0, done.stderr
    for name in ("config.json", "model.safetensors", "training.safetensors"):
        assert (tmp_path / "without" / name).read_bytes() == (folder / name).read_bytes(), name
    for read, written in zip(
        torch.load(tmp_path / "weights.pt"), (ours.state_dict(), ours.training_weights), strict=True
    ):
        assert all(torch.equal(read[name], written[name]) for name in written)
    assert GGM.from_pretrained(tmp_path / "without").config == CONFIG


def test_without_optional_packages_their_extras_are_named(tmp_path):
    code = """
from ggm import GGM, GGMConfig, ChainConfig
from ggm.extras import MissingExtraError
try:
    GGM(GGMConfig(3, ChainConfig(4))).save_pretrained(sys.argv[2])
except MissingExtraError as error:
    assert str(error) == "safetensors is not installed: pip install 'ggm-kernels[hub]'", error
else:
    raise AssertionError
from ggm.commands.cli import main
sys.exit(main(["train", sys.argv[1]]))
"""
    done = run_without(
        "huggingface_hub safetensors accelerate yaml tokenizers datasets", code, __file__, str(tmp_path)
    )
    assert done.returncode == 1
    assert done.stderr == "ggm: error: yaml is not installed: pip install 'ggm-kernels[train]'\n"
