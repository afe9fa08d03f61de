"""What is told of progress: bars on a terminal, lines elsewhere, nothing if it is asked for."""

import io
import re

import pytest
from small_runs import written

from ggm import progress
from ggm.commands.cli import main
from ggm.progress import library_bars, progress_bar


def test_without_a_terminal_there_is_a_line_every_thirty_seconds(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 7)).__next__  # every look at the clock is seven seconds later
    monkeypatch.setattr(progress.time, "perf_counter", clock)
    with progress_bar(True, 100, "work") as bar:
        for step in range(50):
            bar.set_postfix_str(f"step {step}")
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    # A look per step, and one per line: a line every sixth look, 42 seconds of this clock, and the last.
    assert len(lines) == 50 // 5 + 1
    assert all(
        re.fullmatch(r"work: \d+%, \d:\d\d:\d\d gone, \d:\d\d:\d\d left, step \d+", line) for line in lines
    )
    assert lines[-1].startswith("work: 50%") and lines[-1].endswith("step 49")


@pytest.mark.parametrize(
    ("terminal", "told"), [(False, r"work: 100%, 0:00:00 gone\n"), (True, r"\rwork: .*\n")]
)
def test_where_there_is_nothing_to_do_nothing_fails(terminal, told, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", stream)
    with progress_bar(True, 0, "work"):
        pass
    assert re.fullmatch(told, stream.getvalue(), re.DOTALL)


def test_work_that_fails_or_is_not_shown_tells_nothing(capsys):
    for show in (True, False):
        with pytest.raises(ValueError), progress_bar(show, 10, "work") as bar:
            bar.update(5)
            raise ValueError
    with progress_bar(False, 10, "work") as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("quiet", [True, False])
def test_bars_of_other_packages_are_not_in_logs(quiet, tmp_path, capfd):
    import datasets

    source = tmp_path / "a.jsonl"
    source.write_text("".join(f'{{"text": "some words {i} {"x" * 90}"}}\n' for i in range(40)))
    words = ["--set", f"data={{kind: text, source: {source}, held_out: 4}}", "--set", "model.chain.length=64"]
    settings = ["train", str(written(tmp_path)), *words, "--set", "training.steps=2"]
    assert main([*settings, *["--quiet"][:quiet]]) == 0
    error = capfd.readouterr().err
    assert "\r" not in error and "it/s" not in error and "examples" not in error
    lines = error.splitlines()
    shares = [line.split(",")[0] for line in lines]
    assert shares == ([] if quiet else ["training: 50%", "training: 100%"])
    assert not datasets.utils.are_progress_bars_disabled()


@pytest.mark.parametrize(
    ("show", "terminal", "hidden"), [(True, True, False), (False, True, True), (True, False, True)]
)
def test_bars_of_other_packages_are_shown_on_terminals_that_want_them(show, terminal, hidden, monkeypatch):
    import datasets

    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", stream)
    with library_bars(show):
        assert datasets.utils.are_progress_bars_disabled() == hidden
    assert not datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()  # whoever wants none has none
    try:
        with library_bars(True):
            assert datasets.utils.are_progress_bars_disabled()
        assert datasets.utils.are_progress_bars_disabled()
    finally:
        datasets.utils.enable_progress_bars()


class Written(io.StringIO):
    """What each call wrote, as a pipe of unbuffered Python gets it."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text):
        self.pieces.append(text)
        return super().write(text)


@pytest.mark.usefixtures("fresh_accelerate")
def test_lines_of_several_processes_do_not_mix(tmp_path, monkeypatch):
    """Every line is one write, of results and errors alike."""
    out, err = Written(), Written()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    config = str(written(tmp_path))
    assert main(["train", config, "--set", "training.steps=1"]) == 0
    assert main(["train", config]) == 1
    assert [text.count("\n") for text in out.pieces + err.pieces] == [1, 1, 1]
    assert out.pieces[0].startswith("1 steps; checkpoint ") and err.pieces[1].startswith("ggm: error: ")
