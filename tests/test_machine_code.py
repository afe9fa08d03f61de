"""The report on machine code sees what it must fail on."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


def load_machine_code():
    sys.path.insert(0, str(ROOT / ".ci"))
    spec = importlib.util.spec_from_file_location("machine_code", ROOT / ".ci/machine_code.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


machine_code = load_machine_code()

KERNEL = {
    "registers": 40, "stack": 0, "instructions": 9, "blocks": 6, "loads_128": 2, "stores_128": 1, "local": 0,
    "matrix": 4, "wgmma": 0, "special": 0,
}  # fmt: skip
WIDE = "__global__ void scale(float4* p) { float4 v = p[threadIdx.x]; v.x *= 2; p[threadIdx.x] = v; }\n"
NARROW = "__global__ void scale(float* p) { for (int i = 0; i < 4; ++i) p[4 * threadIdx.x + i] *= 2; }\n"
SPILLING = """
__global__ void __launch_bounds__(1024, 2) scale(float* p, int n) {
  float a[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) a[i] = p[i * n + threadIdx.x];
  for (int r = 0; r < n; ++r)
#pragma unroll
    for (int i = 0; i < 96; ++i) a[i] = a[i] * a[(i + 7) % 96] + a[(i * 5 + 1) % 96];
#pragma unroll
  for (int i = 0; i < 96; ++i) p[i * n + threadIdx.x] = a[i];
}
"""


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"loads_128": 0}, "loads_128 2 -> 0"),
        ({"stores_128": 0}, "stores_128 1 -> 0"),
        ({"matrix": 3}, "matrix 4 -> 3"),
        ({"blocks": 5}, "blocks 6 -> 5"),
        ({"stack": 8}, "spills, stack 0 -> 8"),
        ({"local": 2}, "spills, local 0 -> 2"),
    ],
)
def test_what_got_worse_is_told(change, line):
    told = machine_code.compare("cuda sm_90", {"race": KERNEL}, {"race": {**KERNEL, **change}})
    assert told == [f"cuda sm_90: race: {line}"]
    assert not machine_code.compare("cuda sm_90", {"race": KERNEL}, {"race": {**KERNEL, "registers": 41}})


def test_kernels_come_and_go():
    gone, new = machine_code.compare("cuda sm_90", {"old": KERNEL}, {"new": KERNEL})
    assert "old is gone" in gone and "new is not in the report" in new


@pytest.mark.parametrize("where", ["cuda sm_120", "triton sm_90"])
def test_a_spill_is_never_allowed(where):
    spilling = {**KERNEL, "local": 2}
    assert machine_code.compare(where, {"race": spilling}, {"race": spilling})


def test_the_one_kernel_with_leave_to_spill_may_not_spill_more():
    name, spilling = "_commit_kernel i32 BLOCK=4096", {**KERNEL, "local": 2}
    assert not machine_code.compare("triton sm_90", {name: spilling}, {name: spilling})
    assert machine_code.compare("triton sm_90", {name: spilling}, {name: {**KERNEL, "local": 4}})
    other = name.replace("4096", "2048")
    assert machine_code.compare("triton sm_90", {other: spilling}, {other: spilling})


def test_blocks_are_counted_by_registers():
    assert machine_code.blocks_of("race_kernel<float>", 60, "90") == 4
    assert machine_code.blocks_of("race_kernel<float>", 32, "120") == 6
    assert machine_code.blocks_of("threshold_kernel<float>", 53, "90") == 2


@pytest.mark.slow  # `make cuda-check` runs it
@needs_nvcc
def test_a_kernel_that_spills_or_loses_its_wide_loads_is_seen(tmp_path):
    kernels = {}
    for name, text in [("wide", WIDE), ("narrow", NARROW), ("spilling", SPILLING)]:
        source = tmp_path / f"{name}.cu"
        source.write_text(text)
        kernels[name] = machine_code.of_cuda(source, "90")
    told = machine_code.compare("cuda sm_90", kernels["wide"], kernels["narrow"])
    assert told == ["cuda sm_90: scale: loads_128 1 -> 0", "cuda sm_90: scale: stores_128 1 -> 0"]
    assert any(
        ": spills, " in line
        for line in machine_code.compare("cuda sm_90", kernels["narrow"], kernels["spilling"])
    )


def test_the_report_holds_every_kernel_of_every_architecture():
    import json

    report = json.loads(machine_code.REPORT.read_text())
    assert set(report.pop(machine_code.MADE_FROM)) == set(machine_code.SOURCES)
    assert set(report) == {f"cuda sm_{arch}" for arch in machine_code.ARCHS} | {
        f"triton sm_{arch}" for arch in machine_code.TRITON_ARCHS
    }
    # Triton's commit alone, of the most positions at once, keeps a little in memory (compile_triton.py says why).
    of_memory = {
        name: kernel["stack"]
        for kernels in report.values()
        for name, kernel in kernels.items()
        if kernel["local"] or kernel["stack"]
    }
    assert all(machine_code.may_spill(name) for name in of_memory)
    assert max(of_memory.values()) <= 160
    page = machine_code.PAGE.read_text()
    assert machine_code.with_table(page, report) == page


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """A tree of three sources, and a compiler of one version: the list of what it compiles."""
    for name in ("csrc/cuda/step.cu", "csrc/numerics/race.h", "ggm_kernels/triton/step.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    done = []

    def measure(cuda_archs, triton_archs):
        names = [*(f"cuda sm_{arch}" for arch in cuda_archs), *(f"triton sm_{arch}" for arch in triton_archs)]
        done.extend(names)
        return {name: {"race": KERNEL} for name in names}

    monkeypatch.setattr(machine_code, "ROOT", tmp_path)
    monkeypatch.setattr(machine_code, "compiler_of", lambda kind: "one")
    monkeypatch.setattr(machine_code, "measure", measure)
    return done


ALL = {"cuda": machine_code.CHECKED_ARCHS, "triton": machine_code.TRITON_ARCHS}
BEFORE = {f"{kind} sm_{arch}": {"race": KERNEL} for kind in ALL for arch in ("80", "90", "120")}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("csrc/cuda/step.cu", ["cuda"]),
        ("csrc/numerics/race.h", ["cuda"]),
        ("csrc/cuda/new.h", ["cuda"]),
        ("ggm_kernels/triton/step.py", ["triton"]),
        ("ggm_kernels/ops.py", []),
    ],
)
def test_what_changed_is_compiled_and_nothing_else(tmp_path, compiled, name, kinds, capsys):
    known = {kind: machine_code.digest_of(kind) for kind in ALL}
    assert machine_code.check(BEFORE, ALL, known) == 0 and compiled == []
    assert capsys.readouterr().out.count("are those that machine_code.json was made from") == 2
    (tmp_path / name).write_text("another")
    assert machine_code.check(BEFORE, ALL, known) == 0
    assert sorted({name.split()[0] for name in compiled}) == kinds


def test_another_compiler_compiles_again(tmp_path, compiled, monkeypatch):
    known = {kind: machine_code.digest_of(kind) for kind in ALL}
    monkeypatch.setattr(machine_code, "compiler_of", lambda kind: "two")
    machine_code.check(BEFORE, ALL, known)
    assert len(compiled) == 4


def test_a_report_of_some_architectures_is_not_known_to_be_whole(tmp_path, compiled, monkeypatch):
    report, page = tmp_path / "report.json", tmp_path / "page.md"
    page.write_text("")
    for name, value in [("REPORT", report), ("PAGE", page), ("with_table", lambda page, report: page)]:
        monkeypatch.setattr(machine_code, name, value)
    machine_code.write({}, {"cuda": machine_code.ARCHS, "triton": machine_code.TRITON_ARCHS})
    whole = machine_code.json.loads(report.read_text())
    assert whole[machine_code.MADE_FROM] == {kind: machine_code.digest_of(kind) for kind in ALL}
    machine_code.write(whole, {"cuda": ("90",), "triton": ()})
    part = machine_code.json.loads(report.read_text())[machine_code.MADE_FROM]
    assert part == {"cuda": "", "triton": machine_code.digest_of("triton")}


def test_all_that_kernels_include_is_among_the_sources():
    def among(name: str, kind: str) -> bool:
        return any(ROOT / name in ROOT.glob(pattern) for pattern in machine_code.SOURCES[kind])

    for file in [*(ROOT / "csrc/cuda").iterdir(), *(ROOT / "csrc/numerics").iterdir()]:
        for name in re.findall(r'#include "(.*?)"', file.read_text()):
            assert name == "emulated/device.h" or among(f"csrc/{name}", "cuda"), name
    for file in (ROOT / "ggm_kernels/triton").glob("*.py"):
        for name in re.findall(r"^from (ggm_kernels\.\S+) import", file.read_text(), flags=re.MULTILINE):
            path = name.replace(".", "/")
            on_host = name.startswith("ggm_kernels.reference")
            assert on_host or among(f"{path}.py", "triton") or (ROOT / path).is_dir(), name
