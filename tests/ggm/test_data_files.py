"""A run goes on with the data that it began with: a file that changed is refused by name."""

import json
import os
from pathlib import Path

import numpy
import pytest
from pictures import draw_pictures
from small_runs import trained, written

from ggm.commands.cli import main
from ggm.config import ConfigError
from ggm.digests import sha256
from ggm.training.config import read_config
from ggm.training.run import run

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
LENGTH = 64


def text(home: Path) -> tuple[Path, str]:
    path = home / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"some words {i} " * 20}) + "\n" for i in range(40)))
    return path, f"{{kind: text, source: {path}, held_out: 4}}"


def stream(home: Path) -> tuple[Path, str]:
    path, _ = text(home)
    return path, f"{{kind: text, source: {path}, held_out: 4, streaming: true, tokenizer: bpe:300}}"


def tokens(home: Path) -> tuple[Path, str]:
    path = home / "a.npy"
    numpy.save(path, numpy.random.default_rng(0).integers(0, 5, (40, LENGTH)))
    return path, f"{{kind: tokens, source: {path}, vocab_size: 5, held_out: 4}}"


KINDS = {"text": text, "stream": stream, "tokens": tokens}


def resumed(home: Path, data: str) -> int:
    words = ["--set", f"data={data}", "--set", "training.steps=3", "--resume", "--quiet"]
    return main(["train", str(written(home)), *words])


def files(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["a byte", "an end", "not to be read"])
def test_a_file_of_data_that_changed_is_refused(change, kind, tmp_path, capsys):
    path, data = KINDS[kind](tmp_path)
    trained(tmp_path, f"data={data}", "training.steps=2")
    out, good = tmp_path / "run", path.read_bytes()
    known = read_config(out / "config.yaml").data_file
    assert known is not None and (known.size, known.sha256) == (len(good), sha256(path))
    changed = {
        "a byte": good[:-9] + bytes([good[-9] ^ 1]) + good[-8:],
        "an end": good + good[-50:],
        "not to be read": b"\xff\xfe",
    }
    path.write_bytes(changed[change])
    before = files(out)
    assert resumed(tmp_path, data) == 1
    error = capsys.readouterr().err
    assert error == (
        f"ggm: error: {path}: changed: got {path.stat().st_size} bytes with SHA-256 {sha256(path)[:12]}..; allowed: "
        f"{len(good)} bytes with SHA-256 {known.sha256[:12]}.., as {out / 'config.yaml'} tells\n"
    )
    assert files(out) == before
    assert main(["evaluate", str(out), "--count", "1", "--times", "1"]) == 1
    assert f"{path}: changed: " in capsys.readouterr().err
    path.write_bytes(good)  # with another time of change
    assert resumed(tmp_path, data) == 0
    assert read_config(out / "config.yaml").data_file == known


def test_pictures_that_changed_are_refused_by_their_tokens(vq, tmp_path, capsys):
    pictures = draw_pictures(tmp_path / "pictures", 12)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"out: {tmp_path / 'run'}\n"
        f"data: {{kind: images, source: {pictures}, tokenizer: {vq}, size: 16, held_out: 4, cache: {tmp_path / 'c'}}}\n"
        "model: {chain: {length: 16, sweeps: 1}, backbone: {width: 16, depth: 1, heads: 2}}\n"
        "training: {steps: 1, batch_size: 4}\ntracker: none\n"
    )
    more = ["train", str(config), "--set", "training.steps=2", "--resume", "--quiet"]
    assert main(["train", str(config), "--quiet"]) == 0
    first, second = sorted((pictures / "b").iterdir())[:2]
    good = first.read_bytes()
    first.write_bytes(second.read_bytes())
    capsys.readouterr()
    assert main(more) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"ggm: error: {tmp_path / 'c'}/") and ".npy: changed: got " in error
    assert error.count("\n") == 1
    # The same pictures, written again: their names in the cache differ, their tokens do not.
    first.write_bytes(good)
    os.utime(first, (0, 0))
    assert main(more) == 0


def test_a_configuration_may_name_the_state_of_its_file(tmp_path):
    path, data = tokens(tmp_path)
    settings = [f"data={data}", "training.steps=1", f"data_file={{size: 3, sha256: {'f' * 64}}}"]
    with pytest.raises(
        ValueError, match=rf"^{path}: changed: got .*allowed: 3 bytes with SHA-256 ffffffffffff"
    ):
        trained(tmp_path, *settings)
    with pytest.raises(ConfigError, match=r"data_file\.size: got 'x'; allowed: an integer"):
        trained(tmp_path, "data_file={size: x, sha256: y}")


def test_runs_that_know_of_no_file_go_on(tmp_path):
    path, data = tokens(tmp_path)
    trained(tmp_path, f"data={data}", "training.steps=1")
    config = tmp_path / "run" / "config.yaml"
    kept = [
        line for line in config.read_text().splitlines() if "size: 20" not in line and "sha256" not in line
    ]
    config.write_text("\n".join(kept).replace("data_file:", "data_file: null"))
    assert read_config(config).data_file is None
    assert (
        run(
            read_config(written(tmp_path), [f"data={data}", "training.steps=2"]), resume=True, progress=False
        ).steps
        == 2
    )
    assert read_config(config).data_file is not None


def test_text_of_python_is_known_by_its_file(tmp_path, monkeypatch):
    trained(tmp_path, "data={kind: pydoc}", "data.held_out=8", "training.steps=1")
    from pydoc_data import topics

    other = tmp_path / "topics.py"
    other.write_text(Path(topics.__file__).read_text() + "\n")
    monkeypatch.setattr(topics, "__file__", str(other))
    with pytest.raises(ValueError, match=rf"^{other}: changed: "):
        trained(tmp_path, "data={kind: pydoc}", "data.held_out=8", "training.steps=2", resume=True)


@pytest.mark.parametrize("source", ["texts", "texts/**/*.txt"])
def test_a_folder_of_text_that_changed_is_refused(source, tmp_path, capsys):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt"):
        (folder / name).write_text(f"words of {name}, and more of them. " * 40)
    data = f"{{kind: text, source: '{tmp_path / source}', held_out: 4, tokenizer: char}}"
    trained(tmp_path, f"data={data}", "training.steps=2")
    known = read_config(tmp_path / "run" / "config.yaml").data_file
    assert known is not None and known.size == sum(path.stat().st_size for path in folder.rglob("*.txt"))
    before = files(tmp_path / "run")
    inner, moved, more = folder / "deep" / "b.txt", folder / "deep" / "c.txt", folder / "d.txt"
    good = inner.read_bytes()

    def refused() -> None:
        capsys.readouterr()
        assert resumed(tmp_path, data) == 1
        assert capsys.readouterr().err.startswith(f"ggm: error: {tmp_path / source}: changed: got ")
        assert files(tmp_path / "run") == before

    inner.write_bytes(good[:-1] + b"!")
    refused()
    inner.write_bytes(good)
    inner.rename(moved)
    refused()
    moved.rename(inner)
    more.write_text("more words")
    refused()
    more.unlink()
    folder.rename(tmp_path / "elsewhere")
    yaml = tmp_path / "run" / "config.yaml"
    yaml.write_text(yaml.read_text().replace(str(folder), str(tmp_path / "elsewhere")))
    assert resumed(tmp_path, data.replace(str(folder), str(tmp_path / "elsewhere"))) == 0
