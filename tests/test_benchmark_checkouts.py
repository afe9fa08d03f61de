"""Two checkouts side by side: least times, in turns, and each from its own files."""

import subprocess
from pathlib import Path

import pytest

import ggm_kernels
from benchmarks import checkouts

OTHER = Path("/other")


def test_the_least_of_rounds_in_turns(monkeypatch):
    asked, times = [], iter([9.0, 2.0, 4.0, 8.0])

    def times_of(checkout, seconds, threads):
        asked.append(checkout)
        return {"call": next(times)}

    monkeypatch.setattr(checkouts, "times_of", times_of)
    assert checkouts.compare(OTHER, 2, 1.0, 1) == {"call": (4.0, 2.0)}
    assert asked == [OTHER, checkouts.HERE] * 2


def test_what_is_no_checkout_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit):
        checkouts.main([str(tmp_path)])
    assert "allowed: the root of a checkout" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not ggm_kernels.backends()["cpu"], reason="no compiled core")
def test_a_process_imports_the_checkout_that_it_times(tmp_path):
    times = checkouts.times_of(checkouts.HERE, 0.1, 1)
    assert len(times) >= 9 and all(0 < seconds < 60 for seconds in times.values())
    with pytest.raises(subprocess.CalledProcessError):
        checkouts.times_of(tmp_path, 0.1, 1)
