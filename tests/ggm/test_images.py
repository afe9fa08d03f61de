"""Images at the command line: from a folder to pictures."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from pictures import COUNT, SIZE, small_vq
from PIL import Image

from ggm import GGM
from ggm.commands.cli import main
from ggm.commands.provenance import KEYS
from ggm.data.images.files import fit, open_images
from ggm.data.images.tokenizers import read_tokenizer
from ggm.training.checkpoints import find

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(folder, vq, tmp_path_factory):
    """Folder of a run of two steps on images."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(written(out.parent, folder, vq)), "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Folder of a short run on digits."""
    out = tmp_path_factory.mktemp("digits") / "run"
    path = out.with_suffix(".yaml")
    path.write_text(
        f"out: {out}\ndata: {{kind: digits}}\n"
        "model: {chain: {length: 64, sweeps: 2}, backbone: {width: 16, depth: 1, heads: 2}, "
        "masked_counts: [8], frozen_share: 0.5}\n"
        "training: {steps: 2, batch_size: 8}\ntracker: none\n"
    )
    assert main(["train", str(path), "--quiet"]) == 0
    return out


def written(home: Path, folder: Path, vq: Path, name: str = "run") -> Path:
    path = home / f"{name}.yaml"
    path.write_text(
        f"out: {home / name}\n"
        f"data: {{kind: images, source: {folder}, tokenizer: {vq}, size: {SIZE}, held_out: 4, "
        f"cache: {home / 'cache'}}}\n"
        "model: {chain: {length: 16, sweeps: 2}, backbone: {width: 16, depth: 1, heads: 2, "
        "positions: rotary, grid: [4, 4]}, masked_counts: [4]}\n"
        "training: {steps: 2, batch_size: 8}\ntracker: none\n"
    )
    return path


def test_a_dry_run_leaves_tokens_that_training_takes(folder, vq, tmp_path, monkeypatch):
    config = written(tmp_path, folder, vq)
    assert main(["train", str(config), "--dry-run"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "run.yaml"]
    monkeypatch.setattr("ggm.data.images.token_cache._tokens", None)  # which makes them
    assert main(["train", str(config), "--quiet"]) == 0


def test_from_a_folder_to_pictures_by_commands(folder, tmp_path, capsys):
    vq = tmp_path / "vq"
    words = ["--size", "16", "--downsampling", "4", "--codebook", "16", "--width", "8", "--steps", "3"]
    assert main(["train-vq", str(folder), "--out", str(vq), *words, "--quiet"]) == 0
    assert f"{COUNT} images; mean squared error" in capsys.readouterr().out
    assert Image.open(vq / "reconstructions.png").size == (8 * 66 - 2, 2 * 66 - 2)
    assert main(["train", str(written(tmp_path, folder, vq)), "--quiet"]) == 0
    # The checkpoint is all that is needed from here.
    for path in sorted(vq.iterdir()):
        path.unlink()
    checkpoint = next((tmp_path / "run" / "checkpoints").iterdir())
    assert main(["sample", str(checkpoint), "--count", "3", "--out", str(tmp_path / "samples")]) == 0
    singles = sorted(path.name for path in (tmp_path / "samples").iterdir())
    # Nothing else: the folder may be a data set, whose pictures are all that is in it.
    assert singles == ["00000.png", "00001.png", "00002.png"]
    assert len(open_images(str(tmp_path / "samples"))) == 3
    first = Image.open(tmp_path / "samples" / "00000.png")
    assert first.size == (SIZE, SIZE) and first.mode == "RGB"
    assert Image.open(tmp_path / "samples.grid.png").size == (2 * 66 - 2, 2 * 66 - 2)
    assert main(["sample", str(checkpoint), "--count", "3", "--out", str(tmp_path / "s.npy")]) == 0
    tokenizer = read_tokenizer(checkpoint)
    assert tokenizer is not None
    expected = tokenizer.decode(torch.from_numpy(numpy.load(tmp_path / "s.npy")))
    assert torch.equal(torch.from_numpy(numpy.array(first)), expected[0])


def test_a_run_goes_on_with_the_tokenizer_that_it_began_with(trained, folder, vq, tmp_path, capsys):
    home, name = tmp_path / "home", tmp_path / "vq"
    shutil.copytree(trained.parent, home)
    small_vq(name, vocab_size=17)
    config = str(written(home, folder, name))
    words = ["--set", "training.steps=3", "--resume", "--quiet"]
    # Under another name it is refused.
    assert main(["train", config, *words]) == 1
    assert f"data.tokenizer: got '{name}'; allowed: '{vq}', that of the run" in capsys.readouterr().err
    # What stands under the name now does not matter: the run has its own.
    kept = home / "run" / "config.yaml"
    kept.write_text(kept.read_text().replace(str(vq), str(name)))
    assert main(["train", config, *words]) == 0
    assert len(list((home / "cache").iterdir())) == 1
    last = max((home / "run" / "checkpoints").iterdir())
    assert GGM.from_pretrained(last).config.vocab_size == 16
    # A new run does as it is told.
    shutil.rmtree(home / "run" / "checkpoints")
    assert main(["train", config, "--quiet"]) == 0
    assert GGM.from_pretrained(max((home / "run" / "checkpoints").iterdir())).config.vocab_size == 17


def test_several_processes_make_the_tokens_once(trained, folder, vq, tmp_path):
    config = written(tmp_path, folder, vq)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ggm", "train"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, *words, str(config)], env=env, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stderr.count("images to tokens: 100%") == 1
    cached = [[*(home / "cache").iterdir()] for home in (tmp_path, trained.parent)]
    assert len(cached[0]) == 1 and cached[0][0].name == cached[1][0].name
    assert cached[0][0].read_bytes() == cached[1][0].read_bytes()
    weights = [find(home / "run") / "vq" / "config.json" for home in (tmp_path, trained.parent)]
    assert weights[0].is_file() and weights[1].is_file()


def test_boxes_and_masks_fill_what_they_cover_and_keep_the_rest(trained, folder, tmp_path):
    image = sorted((folder / "a").iterdir())[0]
    width, height = Image.open(image).size
    tokenizer = read_tokenizer(max((trained / "checkpoints").iterdir()))
    assert tokenizer is not None
    given = tokenizer.encode(fit(Image.open(image), SIZE, "RGB")[None])[0].numpy()
    white = Image.new("L", (width, height))
    # Of the 24 rows, the middle 20 are kept: rows 2 to 12 are the upper half.
    white.paste(255, (0, 2, width, 12))
    white.save(tmp_path / "mask.png")
    places = {"--box": "4,0,8,5", "--mask": str(tmp_path / "mask.png")}
    drawn = {"--box": [1, 5], "--mask": [*range(8)]}
    for flag, value in places.items():
        words = ["infill", str(trained), "--image", str(image), flag, value, "--count", "20"]
        assert main([*words, "--out", str(tmp_path / "tokens.npy")]) == 0
        tokens = numpy.load(tmp_path / "tokens.npy")
        kept = numpy.setdiff1d(numpy.arange(16), drawn[flag])
        assert (tokens[:, kept] == given[kept]).all()
        assert all(len(set(tokens[:, i])) > 1 for i in drawn[flag])
        assert main([*words[:-1], "2", "--out", str(tmp_path / "filled.png")]) == 0
        assert Image.open(tmp_path / "filled.png").size == (2 * 66 - 2, 2 * 66 - 2)


def test_a_folder_with_pictures_that_would_stay_is_refused_before_the_work(
    digits, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "samples"
    words = ["sample", str(digits), "--out", str(out), "--count"]
    assert main([*words, "3"]) == main([*words, "3", "--seed", "1"]) == main([*words, "4"]) == 0
    (out / "notes.txt").touch()
    assert main([*words, "4"]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(GGM, "sample", lambda *_, **__: pytest.fail("drawing began"))
    assert main([*words, "2"]) == 1
    told = (
        f"got {out}, where 00002.png would stay among the samples, one of 2 other pictures; allowed: a folder"
    )
    assert capsys.readouterr().err.startswith(f"ggm: error: --out: {told}")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "deep").mkdir()
    (out / "deep" / "a.JPG").touch()
    assert main([*words, "4"]) == 1
    assert "where deep/a.JPG would stay among the samples, one of 1 other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("s.npy", "s.npy.meta.json"),
        ("s.png", "s.png.meta.json"),
        ("s", "s.meta.json"),
        ("s", "s.grid.png"),
    ],
)
def test_a_folder_in_the_place_of_what_stands_beside_samples_is_told_before_the_work(
    name, beside, digits, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(GGM, "sample", lambda *_, **__: pytest.fail("drawing began"))
    (tmp_path / beside).mkdir()
    assert main(["sample", str(digits), "--out", str(tmp_path / name)]) == 1
    told = f"got the folder {tmp_path / beside}; allowed: the name of a file"
    assert capsys.readouterr().err == f"ggm: error: --out: {told}\n"


def test_digits_are_written_and_filled_as_grey_pictures(digits, tmp_path):
    assert main(["sample", str(digits), "--count", "2", "--out", str(tmp_path / "samples")]) == 0
    one = Image.open(tmp_path / "samples" / "00001.png")
    assert one.size == (8, 8) and one.mode == "L"
    assert set(numpy.array(one).flatten().tolist()) <= {0, 85, 170, 255}
    words = ["infill", str(digits), "--image", str(tmp_path / "samples" / "00001.png"), "--box", "2,3,6,8"]
    assert main([*words, "--count", "9", "--out", str(tmp_path / "filled")]) == 0
    filled = numpy.stack([numpy.array(Image.open(path)) for path in sorted((tmp_path / "filled").glob("0*"))])
    hole = numpy.zeros((8, 8), bool)
    hole[3:8, 2:6] = True
    assert len(filled) == 9 and (filled[:, ~hole] == numpy.array(one)[~hole]).all()
    assert filled[:, hole].std(axis=0).min() > 0
    # The record that `ggm sample` leaves: 20 tokens in groups of 8, in each of two sweeps.
    records = [json.loads((tmp_path / f"{name}.meta.json").read_text()) for name in ("filled", "samples")]
    assert records[0].keys() == records[1].keys() == set(KEYS)
    assert records[0]["network_evaluations"] == 6 and records[0]["site_updates"] == 9 * 20 * 2
    assert records[0]["config"]["count"] == 9 and records[0]["step"] == 2
    assert records[0]["seconds"] > 0 and records[0]["site_updates_per_second"] > 0


def edited(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.source={empty}"], "no images; allowed: names that end in .png"),
        (["data.source=no/such-pictures"], "no/such-pictures"),
        (["data.size=18"], "size: got 18; allowed: multiples of 4"),
        (["data.size=24"], "model.chain.length: got 16; allowed: 36, the 6 x 6 tokens of images of size 24"),
        (["data.tokenizer={empty}"], "no folder with a VQModel, and the Hub does not give it"),
        (["data.tokenizer=no/such-network"], "no/such-network: no folder with a VQModel"),
        (["data.held_out=24"], "data.held_out: got 24 of 24 sequences"),
        (["data.source=pictures.parquet"], "pictures.parquet: no such file"),
    ],
)
def test_mistakes_in_a_configuration_are_one_line(overrides, told, folder, vq, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    words = [word for o in overrides for word in ("--set", o.format(empty=empty))]
    assert main(["train", str(written(tmp_path, folder, vq)), *words, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ggm: error: ") and told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sample", "{run}", "--out", "{tmp}/a.txt"], "allowed here: names that end in .npy, .jsonl, .png, or a folder"),
        (["sample", "{run}", "--out", "{tmp}/no/a.png"], "there is no folder"),
        (["sample", "{run}", "--out", "{tmp}/file"], "file is a file; allowed: a folder"),
        (["sample", "{run}", "--out", "."], "--out: got '.'; allowed: a path that ends in a name"),
        (["sample", "{run}", "--out", "{tmp}/.."], "allowed: a path that ends in a name"),
        (["infill", "{run}", "--text", "a_"], "holds no vocabulary of text"),
        (["infill", "{run}", "--image", "{png}", "--box", "0,0,4,4"], "--image: got it without --out; allowed: with --out"),
        (["infill", "{run}", "--image", "{png}", "--out", "{tmp}/a.png"], "--image: got it without --mask or --box; allowed: with"),
        (["infill", "{run}", "--image", "{png}"], "--image: got it without --out and --mask or --box; allowed: with"),
        (["infill", "{run}", "--text", "a_", "--box", "0,0,4,4"], "--box: got without --image; allowed: with --image"),
        (["infill", "{run}", "--image", "{png}", "--box", "0,0,4", "--out", "{tmp}/a.png"], "--box: got '0,0,4'"),
        (["infill", "{run}", "--image", "{png}", "--box", "0,0,4,17", "--out", "{tmp}/a.png"], "up to 16"),
        (["infill", "{run}", "--image", "{png}", "--mask", "{small}", "--out", "{tmp}/a.png"], "4 x 4 pixels; allowed: 20 x 24"),
        (["infill", "{run}", "--image", "{png}", "--mask", "{png}.no", "--out", "{tmp}/a.png"], "no such file"),
        (["infill", "{run}", "--image", "{yaml}", "--box", "0,0,4,4", "--out", "{tmp}/a.png"], "not an image"),
        (["train-vq", "{tmp}", "--out", "{tmp}/vq"], "no images"),
        (["train-vq", "{pictures}", "--out", "{tmp}/vq", "--size", "20"], "multiples of downsampling 8"),
        (["train-vq", "{pictures}", "--out", "{tmp}/vq", "--downsampling", "6"], "powers of 2"),
        (["train-vq", "{pictures}", "--out", "{tmp}/vq", "--batch", "99"], "up to the 24 images there are"),
    ],
)  # fmt: skip
def test_mistakes_at_the_command_line_are_one_line(words, told, trained, folder, tmp_path, capsys):
    Image.new("L", (4, 4)).save(tmp_path / "small.gif")
    (tmp_path / "file").touch()
    places = {
        "run": trained,
        "tmp": tmp_path,
        "png": sorted((folder / "a").iterdir())[0],
        "small": tmp_path / "small.gif",
        "yaml": trained.parent / "run.yaml",
        "pictures": folder,
    }
    assert main([word.format(**places) for word in words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ggm: error: ") and told in error
    assert error.count("\n") == 1


def test_an_empty_mask_is_refused(trained, folder, tmp_path, capsys):
    image = sorted((folder / "a").iterdir())[0]
    Image.new("L", Image.open(image).size).save(tmp_path / "mask.png")
    words = ["--image", str(image), "--mask", str(tmp_path / "mask.png"), "--out", str(tmp_path / "a.png")]
    assert main(["infill", str(trained), *words]) == 1
    assert "--mask: got no white pixel" in capsys.readouterr().err


def test_a_checkpoint_whose_files_do_not_belong_together_is_refused(trained, tmp_path, capsys):
    import shutil

    folder = shutil.copytree(max((trained / "checkpoints").iterdir()), tmp_path / "checkpoint")
    (folder / "digests.json").unlink()  # as in a checkpoint of an earlier version, where nothing else tells
    small_vq(folder / "vq", vocab_size=17)
    assert main(["sample", str(folder), "--out", str(tmp_path / "a.png")]) == 1
    assert "got 17 tokens on a grid of 4 x 4; allowed: 16 tokens, 16 positions" in capsys.readouterr().err
    small_vq(folder / "vq")
    edited(folder / "images.json", size=32)
    assert main(["sample", str(folder), "--out", str(tmp_path / "a.png")]) == 1
    assert "on a grid of 8 x 8" in capsys.readouterr().err
    edited(folder / "images.json", colour="red")
    assert main(["sample", str(folder), "--out", str(tmp_path / "a.png")]) == 1
    error = capsys.readouterr().err
    assert "images.json: not written by this package" in error and error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_without_diffusers_the_error_tells_how_to_get_it(folder, vq, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    told = "ggm: error: diffusers is not installed: pip install 'ggm-kernels[images]'\n"
    assert main(["train", str(written(tmp_path, folder, vq)), "--quiet"]) == 1
    assert capsys.readouterr().err == told
    assert main(["train-vq", str(folder), "--out", str(tmp_path / "vq"), "--quiet"]) == 1
    assert capsys.readouterr().err == told
