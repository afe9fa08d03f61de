"""Files of checkpoints and exports that are not as they were written are refused by all that read them."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import trained, written

from ggm import GGM, ChainConfig, GGMConfig, MaskedConfig
from ggm.commands.cli import main
from ggm.digests import DIGESTS, check_digests, sha256, write_digests
from ggm.training.checkpoints import check_files, find

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
TEXT = ["data={kind: pydoc}", "data.held_out=8", "training.steps=2"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """Folder of a run on text; no test writes to it."""
    home = tmp_path_factory.mktemp("text")
    trained(home, *TEXT)
    return home / "run"


@pytest.fixture
def out(run_folder, tmp_path) -> Path:
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def resume(out: Path) -> int:
    settings = [word for setting in [*TEXT[:-1], "training.steps=3"] for word in ("--set", setting)]
    return main(["train", str(written(out.parent)), *settings, "--resume", "--quiet"])


def sample(out: Path) -> int:
    return main(["sample", str(out)])


def infill(out: Path) -> int:
    return main(["infill", str(out), "--text", "the __"])


def evaluate(out: Path) -> int:
    return main(["evaluate", str(out), "--count", "1", "--no-held-out"])


def load(out: Path) -> int:
    GGM.from_pretrained(find(out))
    return 0


def load_training(out: Path) -> int:
    GGM.from_pretrained(find(out), weights="training")
    return 0


READERS = {
    "model.safetensors": [resume, sample, infill, evaluate, load],
    "training.safetensors": [resume, sample, load, load_training],
    "config.json": [resume, sample, load, load_training],
    "optimizer.pt": [resume],
    "progress.json": [resume, sample],
    "tokenizer.json": [resume, sample, infill, evaluate],
}
CASES = [(name, reader) for name, readers in READERS.items() for reader in readers]


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize(("name", "reader"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_bit_that_flipped_is_noticed(name, reader, out, capsys):
    path = find(out) / name
    good, places = path.read_bytes(), random.Random(0)
    for _ in range(3):
        flipped(path, places.randrange(8 * len(good)))
        told = f"{path}: damaged or replaced: its SHA-256 is not that in {DIGESTS}"
        if reader in (load, load_training):
            with pytest.raises(ValueError) as caught:
                reader(out)
            assert str(caught.value) == told
        else:
            assert reader(out) == 1
            assert capsys.readouterr().err == f"ggm: error: {told}\n"
        path.write_bytes(good)
    assert reader(out) == 0


def test_every_file_of_a_checkpoint_has_a_digest_but_the_card(out):
    checkpoint = find(out)
    digests = json.loads((checkpoint / DIGESTS).read_text())
    assert set(digests) == set(READERS)
    assert all(digests[name] == sha256(checkpoint / name) for name in digests)
    (checkpoint / "README.md").write_text("A card of one's own.")
    assert resume(out) == 0


@pytest.mark.parametrize("reader", [resume, sample])
@pytest.mark.parametrize(
    "damage", ["no digest of a file", "a missing file", "a digest of another name", "no JSON"]
)
def test_digests_that_are_damaged_are_no_excuse(damage, reader, out, capsys):
    checkpoint = find(out)
    path = checkpoint / DIGESTS
    digests = json.loads(path.read_text())
    if damage == "a missing file":
        (checkpoint / "model.safetensors").unlink()
    elif damage == "no JSON":
        path.write_text(path.read_text()[:-20])
    else:
        value = digests.pop("model.safetensors")
        path.write_text(
            json.dumps({**digests, **({"Model.safetensors": value} if "another" in damage else {})})
        )
        flipped(checkpoint / "model.safetensors", -1)
    assert reader(out) == 1
    error = capsys.readouterr().err
    assert error.startswith("ggm: error: ") and error.count("\n") == 1 and str(checkpoint) in error


def test_a_network_of_pictures_is_checked(folder, vq, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"out: {tmp_path / 'run'}\n"
        f"data: {{kind: images, source: {folder}, tokenizer: {vq}, size: 16, held_out: 4, cache: {tmp_path / 'cache'}}}\n"
        "model: {chain: {length: 16, sweeps: 1}, backbone: {width: 16, depth: 1, heads: 2}}\n"
        "training: {steps: 1, batch_size: 4}\ntracker: none\n"
    )
    assert main(["train", str(config), "--quiet"]) == 0
    capsys.readouterr()
    path = find(tmp_path / "run") / "vq" / "diffusion_pytorch_model.safetensors"
    flipped(path, 8 * 20_000)
    for words in (
        ["sample", str(tmp_path / "run")],
        ["train", str(config), "--resume", "--set", "training.steps=2"],
    ):
        assert main(words) == 1
        assert capsys.readouterr().err.startswith(f"ggm: error: {path}: damaged or replaced")


def test_a_checkpoint_without_digests_goes_on_and_says_so(out, capsys):
    (find(out) / DIGESTS).unlink()
    assert resume(out) == 0
    last = out / "checkpoints" / "step-000000002"
    assert capsys.readouterr().err == f"ggm: {last}: its files are not checked, it holds no {DIGESTS}\n"
    assert sample(out) == 0
    assert check_files(find(out))  # what it wrote itself has them


def test_an_export_into_a_checkpoint_leaves_no_digests_of_what_was_there(out):
    checkpoint = find(out)
    model = GGM.from_pretrained(checkpoint)
    torch.nn.init.normal_(model.backbone.head_bias)
    model.save_pretrained(checkpoint)
    assert torch.equal(GGM.from_pretrained(checkpoint).backbone.head_bias, model.backbone.head_bias)


def test_digests_of_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"abc")
    assert not check_digests(tmp_path, ["a/b"])
    write_digests(tmp_path)
    # Of FIPS 180.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert json.loads((tmp_path / DIGESTS).read_text()) == {"a/b": expected}
    assert check_digests(tmp_path, ["a/b", "not there"])
    large = tmp_path / "large"
    large.write_bytes(b"a" * 1_000_000)  # Of FIPS 180, too
    assert sha256(large) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    large.write_bytes(bytes(2**20 + 1))
    assert sha256(large) != sha256(tmp_path / "a" / "b")
    with pytest.raises(ValueError, match="large: damaged or replaced"):
        check_digests(tmp_path, ["large"])  # it has none


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["averaged", "training"])
def test_weights_that_are_not_finite_are_refused(kind, value, tmp_path, capsys):
    model = GGM(GGMConfig(5, ChainConfig(6, sweeps=2), MaskedConfig(width=8, depth=1, heads=1)))
    good = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        model.backbone.head_bias[2] = value
    path = tmp_path / {"averaged": "model.safetensors", "training": "training.safetensors"}[kind]
    told = rf"^{path}: got weights that are not finite, in backbone\.bias; allowed: finite ones"
    if kind == "training":
        bad = {name: weight.clone() for name, weight in model.state_dict().items()}
        model.load_state_dict(good)
        model.training_weights = bad
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=told):
        GGM.from_pretrained(tmp_path, weights=kind)
    with pytest.raises(ValueError, match=told):
        GGM.from_pretrained(tmp_path)
    for command in ("sample", "evaluate"):
        assert main([command, str(tmp_path), *(["--no-held-out"] if command == "evaluate" else [])]) == 1
        error = capsys.readouterr().err
        assert "got weights that are not finite" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"step": true, "seconds": 1.0}', "allowed: step, an integer from 1 to 2147483647"),
        ('{"step": -5, "seconds": 1.0}', "allowed: step, "),
        ('{"step": 0, "seconds": 1.0}', "allowed: step, "),
        ('{"step": 2.0, "seconds": 1.0}', "allowed: step, "),
        ('{"step": NaN, "seconds": 1.0}', "allowed: step, "),
        ('{"step": 12345678901234567890, "seconds": 1.0}', "allowed: step, "),
        ('{"step": 3, "seconds": 1.0}', "got step 3; allowed: 2, that of the folder"),
        ('{"step": 2, "seconds": NaN}', "allowed: seconds, a finite number from 0"),
        ('{"step": 2, "seconds": Infinity}', "allowed: seconds, "),
        ('{"step": 2, "seconds": -1.0}', "allowed: seconds, "),
        ('{"step": 2, "seconds": false}', "allowed: seconds, "),
        ('{"step": 2}', "allowed: seconds, "),
    ],
)
def test_progress_that_cannot_be_is_refused(text, told, out, tmp_path, capsys):
    checkpoint = find(out)
    (checkpoint / DIGESTS).unlink()  # as a checkpoint of the first edition
    (checkpoint / "progress.json").write_text(text)
    for reader in (resume, lambda out: main(["sample", str(out), "--out", str(tmp_path / "a.npy")])):
        assert reader(out) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"ggm: error: {checkpoint / 'progress.json'}: got ") and told in error
