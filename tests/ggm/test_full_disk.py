"""What commands write is there as a whole or not at all: a full disk is told in one line."""

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pictures import draw_pictures
from small_runs import trained

from ggm.commands import figures
from ggm.commands.cli import main

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
OLD = b"what was there before"


@contextmanager
def little_room(size: int):
    """As on a disk with little room: the kernel refuses to write beyond the first bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Folder of a run; no test writes to it."""
    home = tmp_path_factory.mktemp("digits")
    trained(home, "training.steps=1", "checkpoint_every=1")
    return home / "run"


def assert_told(words: list[str], path: Path, room: int, capsys) -> None:
    with little_room(room):
        status = main(words)
    error = capsys.readouterr().err
    assert status == 1 and error.startswith(f"ggm: error: {path}: could not be written: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("name", ["a.npy", "a.jsonl", "a.png", "a"])
def test_samples(name, there, digits, tmp_path, capsys):
    out = tmp_path / "samples"
    out.mkdir()
    path = out / name
    if there:
        kept = path / "00000.png" if name == "a" else path
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(OLD)
    before = files(out)
    words = ["sample", str(digits), "--count", "2", "--out", str(path)]
    assert_told(words, path, 60, capsys)
    assert files(out) == before and sorted(out.iterdir()) == ([path] if there else [])
    assert main(words) == 0
    assert files(out) != before and not list(out.glob(".*"))


def test_results_of_an_evaluation(digits, tmp_path, capsys):
    out = tmp_path / "results.json"
    out.write_bytes(OLD)
    words = ["evaluate", str(digits), "--count", "2", "--times", "1", "--out", str(out)]
    assert_told(words, out, 60, capsys)
    assert out.read_bytes() == OLD and not list(tmp_path.glob(".*"))
    assert main(words) == 0
    assert json.loads(out.read_text())["command"] == "evaluate"


@pytest.mark.parametrize("room", [50, 20_000])  # for the picture, and for the weights
def test_a_network_of_pictures(room, tmp_path, capsys):
    folder, out = draw_pictures(tmp_path / "pictures", 4), tmp_path / "vq"
    small = ["--size", "16", "--downsampling", "4", "--width", "8", "--batch", "2", "--steps", "1"]
    words = ["train-vq", str(folder), "--out", str(out), *small, "--quiet"]
    assert_told(words, out, room, capsys)
    assert not out.exists() and not list(tmp_path.glob(".*"))
    assert main(words) == 0
    before = files(out)
    assert {path.name for path in before} > {"config.json", "reconstructions.png"}
    assert_told([*words, "--seed", "1"], out, room, capsys)
    assert files(out) == before


def test_pictures_of_the_demo(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "samples.png"
    path.write_bytes(OLD)
    tokens = torch.zeros(4, 64, dtype=torch.int64)
    with little_room(60), pytest.raises(OSError, match=rf"^{path}: could not be written: "):
        figures.real_and_sampled(path, tokens, tokens, 4)
    assert path.read_bytes() == OLD and list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_written_to_as_it_is(digits, tmp_path, capfd):
    assert main(["evaluate", str(digits), "--count", "1", "--no-held-out", "--out", "/dev/stderr"]) == 0
    assert '"command": "evaluate"' in capfd.readouterr().err
    link = tmp_path / "link.npy"
    link.symlink_to(tmp_path / "a.npy")
    assert main(["sample", str(digits), "--out", str(link)]) == 0
    assert link.is_symlink() and (tmp_path / "a.npy").is_file()


@pytest.mark.parametrize("there", ["file", "closed"])
def test_a_folder_that_cannot_be_written_to_is_told_before_training(there, tmp_path, capsys, monkeypatch):
    from ggm.training import vq

    monkeypatch.setattr(vq, "make_vq", lambda config: pytest.fail("training began"))
    out = tmp_path / "place"
    if there == "file":
        out.touch()
    else:
        monkeypatch.setattr("ggm.files.os.access", lambda path, mode: False)  # root may write anywhere
    words = ["train-vq", str(draw_pictures(tmp_path / "pictures", 4)), "--out", str(out), "--batch", "2"]
    assert main(words) == 1
    told = f"{out} is not a folder" if there == "file" else f"no permission to write into {tmp_path}"
    assert capsys.readouterr().err == f"ggm: error: {out}: {told}\n"
