"""`.ci/gpu` where the programs that it calls are stand-ins: stages, their order, what is left when one fails."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Says what it was asked for; fails, or sleeps, where the file of that name says so; benchmarks leave results.
PROGRAM = """\
#!/bin/bash
echo "{name} $*"
case "$*" in
    *benchmarks.merge*) exec {python} "$@" ;;
esac
for word in $(cat "{folder}/failing" 2>/dev/null); do
    [[ "$*" == *$word* ]] && {{ echo "broken: $word"; exit 1; }}
done
for word in $(cat "{folder}/sleeping" 2>/dev/null); do
    [[ "$*" == *$word* ]] && sleep 60
done
for word in "$@"; do
    [[ $word == --benchmark-json=* ]] && cp "{folder}/$(basename "${{word#*=}}")" "${{word#*=}}"
done
exit 0
"""
BENCHMARKS = [
    "glauber_step",
    "linear_sigmoid_bce",
    "commit",
    "corrupt",
    "training_step",
    "sampling",
    "sigmoid_bce",
    "linear_cross_entropy",
    "clients",
]
STAGES = [
    "build",
    "backends",
    "tests-cuda",
    "tests-triton",
    "tests-reference",
    "tests-graphs",
    "memcheck",
    "racecheck",
    "rivals",
]
STAGES += [f"bench-{name}" for name in BENCHMARKS]


def results(op: str, seconds: float) -> dict:
    row = {"size": {"N": 1}, "notes": {}, "rounds": 1}
    rows = [
        {"op": op, "implementation": name, "role": role, "seconds": seconds * factor, **row}
        for name, role, factor in (("ggm_kernels cuda", "ours", 1), ("multinomial", "rival", 3))
    ]
    machine = {"cpu": "c", "cores": 2, "gpu": "NVIDIA H100", "versions": {}, "backends": {}}
    machine |= {"ceilings": {"cuda": {"copy_GB_per_s": {}, "matrix_Gflop_per_s": {}}}, "absent": {}}
    return {"date": "2026-01-02", "commit": "abc", "machine": machine, "rows": rows}


@pytest.fixture
def checkout(tmp_path):
    """What the script needs of a checkout, and programs that take the place of the real ones."""
    for folder in (".ci", "benchmarks"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("results", "__pycache__")
        )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_with.py").write_text("pytestmark = pytest.mark.gpu\n")
    (tmp_path / "tests" / "test_emulated_too.py").write_text("def test_it(device_backend, device): ...\n")
    (tmp_path / "tests" / "test_without.py").write_text("import scipy\n")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("python", "compute-sanitizer", "nvidia-smi"):
        (programs / name).write_text(PROGRAM.format(name=name, python=sys.executable, folder=tmp_path))
        (programs / name).chmod(0o755)
    for name in BENCHMARKS:
        (tmp_path / f"{name}.json").write_text(json.dumps(results(name, 0.1)))
    return tmp_path


def run(checkout: Path, **environment: str) -> tuple[int, str, str]:
    """Exit status, what was printed, and the log."""
    programs = checkout / "programs"
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **environment}
    environment |= {"PYTHON": str(programs / "python"), "OUT": str(checkout / "out")}
    done = subprocess.run(
        [str(checkout / ".ci" / "gpu")], env=environment, capture_output=True, text=True, timeout=600
    )
    log = checkout / "out" / "gpu.log"
    return done.returncode, done.stdout + done.stderr, log.read_text() if log.exists() else ""


def kept(checkout: Path) -> list[str]:
    """Ops of the results that were left."""
    files = list((checkout / "out").glob("*.json"))
    rows = [row for file in files for row in json.loads(file.read_text())["rows"]]
    return sorted(row["op"] for row in rows if row["role"] == "ours")


def heads(log: str) -> dict[str, str]:
    """The line of each stage."""
    lines = [line[4:] for line in log.splitlines() if line.startswith("=== ")]
    return {line.partition(":")[0]: line.partition(": ")[2] for line in lines}


def test_all_stages(checkout):
    status, told, log = run(checkout)
    assert status == 0, told
    stages = heads(log)
    assert set(stages) >= set(STAGES)
    assert all(stages[name].startswith("passed") for name in STAGES)
    order = list(stages)
    assert order.index("build") < order.index("tests-cuda") < order.index("bench-glauber_step")
    assert kept(checkout) == sorted(BENCHMARKS)
    assert "3x faster" in told
    files = sorted(path.name for path in (checkout / "out").iterdir())
    assert files == ["gpu.log", "nvidia-h100-2026-01-02.json"]


def test_only_files_with_gpu_tests_are_collected(checkout):
    _, _, log = run(checkout, STAGES="tests-* memcheck")
    lines = [line for line in log.splitlines() if "-m pytest" in line]
    graphs = [line for line in lines if "test_cuda_graphs.py" in line]
    assert len(lines) >= 5 and graphs
    assert all(("test_emulated_too.py" in line) == ("test_with.py" in line) for line in lines)
    assert all(
        "test_without.py" not in line and ("test_with.py" in line) != (line in graphs) for line in lines
    )


def test_a_stage_that_fails_spoils_no_other(checkout):
    (checkout / "failing").write_text("--tool test_corrupt.py")
    status, told, log = run(checkout)
    stages = heads(log)
    assert status == 1
    assert {name for name in STAGES if stages[name].startswith("FAILED")} == {
        "memcheck", "racecheck", "bench-corrupt",
    }  # fmt: skip
    assert "broken: test_corrupt.py" in told and "broken: test_corrupt.py" in log
    assert kept(checkout) == sorted({*BENCHMARKS} - {"corrupt"})
    assert "not passed" in told


def test_nothing_runs_without_a_build(checkout):
    (checkout / "failing").write_text("pip")
    status, _, log = run(checkout)
    assert status == 1
    assert set(heads(log)) == {"device", "build"}


def test_stages_by_name_and_pattern(checkout):
    status, _, log = run(checkout, STAGES="build bench-s*")
    assert status == 0
    benchmarks = ["sampling", "sigmoid_bce"]
    assert set(heads(log)) & set(STAGES) == {"build", *(f"bench-{name}" for name in benchmarks)}
    assert kept(checkout) == benchmarks


def test_an_unknown_stage_is_refused(checkout):
    status, told, log = run(checkout, STAGES="build benchmarks")
    assert status == 2
    assert "STAGES: got benchmarks; allowed: build backends" in told
    assert not log


def test_the_time_for_all_is_kept(checkout):
    (checkout / "sleeping").write_text("test_glauber_step.py")
    started = time.monotonic()
    status, _, log = run(checkout, LIMIT="10", STAGES="build bench-*")
    assert time.monotonic() - started < 60  # what the first benchmark sleeps
    stages = heads(log)
    assert status == 1
    assert stages["bench-glauber_step"].startswith("OUT OF TIME")
    assert all(stages[f"bench-{name}"] == "LEFT OUT, no time" for name in BENCHMARKS[1:])


def test_every_benchmark_has_a_stage():
    files = (ROOT / "benchmarks").glob("test_*.py")
    assert sorted(BENCHMARKS) == sorted(file.stem.removeprefix("test_") for file in files)
