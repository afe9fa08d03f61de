"""One run at a time in a folder: a second one is refused before it writes."""

import errno
import os
from pathlib import Path

import pytest
import torch.distributed as dist
from processes import PATIENCE, finish, start, wait_for
from small_runs import curve, trained, written

from ggm.commands.cli import main
from ggm.training.lock import LOCK, LockedError, locked

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


def files(out: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=needs_gloo)])
@pytest.mark.parametrize("words", [["--resume"], []])
def test_a_second_run_is_refused_and_the_first_loses_nothing(words, count, tmp_path, capsys):
    out, log = tmp_path / "run", tmp_path / "log"
    config = written(tmp_path)
    long = ["--set", "training.steps=1000000", "--set", "checkpoint_every=1000000", "--quiet"]
    first = start(["train", str(config), *long, "--set", "log_every=1"], log, count)
    wait_for(lambda: len(curve(out)) > 2, first, log)
    before = {name: content for name, content in files(out).items() if "metrics" not in name}
    assert main(["train", str(config), "--set", "training.seed=7", *words, "--quiet"]) == 1
    told = (
        f"ggm: error: {out}: another run trains there (process {first[0].pid}); `out:` names another folder\n"
    )
    assert capsys.readouterr().err == told
    assert {name: content for name, content in files(out).items() if "metrics" not in name} == before
    first[0].terminate()
    finish(first, log)
    steps = [step for step, _ in curve(out)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 2
    assert not (out / LOCK).exists()


@needs_gloo
def test_every_process_of_a_second_run_is_told(tmp_path):
    log = tmp_path / "log"
    config = written(tmp_path)
    with locked(tmp_path / "run"):
        second = start(["train", str(config), "--quiet"], log, 2)
        for process in second:
            process.join(PATIENCE)
        assert [process.exitcode for process in second] == [1, 1]
        lines = log.read_text().splitlines()
        assert len(lines) == 2 and all("another run trains there" in line for line in lines)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_a_killed_run_holds_nothing(tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    (process,) = start(["train", str(written(tmp_path)), "--set", "training.steps=1000000", "--quiet"], log)
    wait_for(lambda: (out / "config.yaml").exists(), [process], log)
    process.kill()
    process.join()
    assert (out / LOCK).is_file()
    assert trained(tmp_path, resume=True).steps >= 12
    assert not (out / LOCK).exists()


def test_a_lock_that_was_removed_in_between_is_taken_anew(tmp_path, monkeypatch):
    from ggm.training import lock

    flock, calls = lock.fcntl.flock, []

    def late(file, flags):
        if not calls:
            (tmp_path / LOCK).unlink()  # as the run before does when it ends
        calls.append(file)
        flock(file, flags)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with locked(tmp_path):
        assert len(calls) == 2
        with pytest.raises(LockedError), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).is_file()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, capsys):
    from ggm.training import lock

    def none(file, flags):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).is_file()
    assert capsys.readouterr().err == f"ggm: {tmp_path / 'run'}: not locked: no locks available\n"
    monkeypatch.setattr(lock.fcntl, "flock", lambda file, flags: os.stat(tmp_path / "not there"))
    with pytest.raises(FileNotFoundError), locked(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    "wrong",
    ["data.held_out=5000", "training.batch_size=100000", "model.chain.length=5", "tracker=wandb"],
)
def test_a_run_that_cannot_start_leaves_no_folder_of_a_tracker(wrong, tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    words = ["--set", "tracker=tensorboard", "--set", wrong]
    assert main(["train", str(written(tmp_path)), *words, "--quiet"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    out = tmp_path / "run"
    assert not out.exists() or {path.name for path in out.iterdir()} <= {"images.json"}


def test_a_folder_that_was_there_stays(tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        pass
    with locked(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
