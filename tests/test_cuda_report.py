"""The report on registers and spills sees what it must fail on."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


def load_cuda_report():
    spec = importlib.util.spec_from_file_location("cuda_report", ROOT / ".ci" / "cuda_report.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


cuda_report = load_cuda_report()

SPILLING_KERNEL = """
__global__ void __launch_bounds__(1024, 2) spilling(float* p, int n) {
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
CLEAN_KERNEL = "template <int K> __global__ void clean(float* p) { p[threadIdx.x] *= K; }\n"
CLEAN_KERNEL += "template __global__ void clean<3>(float*);\n"

PTXAS_LOG = """
ptxas info    : Compiling entry function '_Z5cleanPf' for 'sm_80'
ptxas info    : Function properties for _Z5cleanPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 360 bytes cmem[0]
ptxas info    : Function properties for _Z6helperPf
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
"""


def run_cuda_report(tmp_path: Path, source: str) -> subprocess.CompletedProcess:
    file = tmp_path / "kernel.cu"
    file.write_text(source)
    command = [sys.executable, str(ROOT / ".ci/cuda_report.py"), str(file)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow  # `make cuda-check` runs it
@needs_nvcc
def test_cuda_report_passes_a_clean_kernel(tmp_path):
    done = run_cuda_report(tmp_path, CLEAN_KERNEL)
    assert done.returncode == 0, done.stderr
    assert "sm_80" in done.stdout and "sm_90" in done.stdout
    assert "clean" in done.stdout


@pytest.mark.slow  # `make cuda-check` runs it
@needs_nvcc
def test_cuda_report_fails_on_a_spill(tmp_path):
    done = run_cuda_report(tmp_path, CLEAN_KERNEL + SPILLING_KERNEL)
    assert done.returncode == 1
    assert "SPILL: spilling on sm_80" in done.stderr
    assert "SPILL: clean" not in done.stderr


@pytest.mark.slow  # `make cuda-check` runs it
@needs_nvcc
@pytest.mark.parametrize("fault", ["int unused = 3;", "return 1;"])
def test_cuda_report_fails_on_a_warning(tmp_path, fault):
    done = run_cuda_report(tmp_path, f"__global__ void k(int* p) {{ p[0] = 1; {fault} }}\n")
    assert done.returncode == 1
    assert "does not compile cleanly" in done.stderr


def test_ptxas_log_is_read():
    kernel, helper = cuda_report.parse_ptxas(PTXAS_LOG)
    assert (kernel.arch, kernel.registers, kernel.spills) == ("sm_80", 8, False)
    assert (helper.stack, helper.spill_stores, helper.spill_loads) == (16, 8, 12)
    assert cuda_report.verdict([kernel]) == 0
    assert cuda_report.verdict([kernel, helper]) == 1


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("clean(float*)", "clean"),
        ("void clean<(int)3, (bool)1>(float*, unsigned int)", "clean<3, 1>"),
        (
            "void a::(anonymous namespace)::race<float, (a::(anonymous namespace)::Mode)2>(a::Race)",
            "a::race<float, 2>",
        ),
    ],
)
def test_names_are_short_and_keep_what_tells_them_apart(name, short):
    assert cuda_report.shorten(name) == short
