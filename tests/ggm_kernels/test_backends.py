"""Choosing a backend, and saying why one is not there."""

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from unittest import mock

import pytest
import torch

import ggm_kernels
from ggm_kernels import backends, corrupt, native
from ggm_kernels.backends import backend_of_environment, checks_rows, kernel

TOKENS, KEEP = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1)


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(Path(ggm_kernels.__file__).parents[1]),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_every_backend_is_reported():
    states = backends()
    assert list(states) == ["reference", "cpu", "cuda", "triton", "emulated"]
    assert states["reference"]
    for state in states.values():
        assert state.reason
        assert bool(state) == state.available
        assert state.ops or not state  # what is built but has no device still says what it implements


def test_the_best_backend_serves():
    name, _ = kernel("corrupt", "auto", torch.device("cpu"))
    assert name == ("cpu" if backends()["cpu"] else "reference")
    assert kernel("corrupt", "auto", torch.device("mps"))[0] == "reference"


def test_the_environment_is_read_as_it_is_now(monkeypatch):
    for value in ("reference", "", "1\u00e9"):
        monkeypatch.setenv("GGM_KERNELS_BACKEND", value)
        assert backend_of_environment() == value
    monkeypatch.delenv("GGM_KERNELS_BACKEND")
    assert backend_of_environment() is None
    with mock.patch.dict(os.environ, GGM_KERNELS_CHECK="1"):
        assert checks_rows()
    assert not checks_rows()


def test_the_environment_chooses_unless_the_call_does(monkeypatch):
    monkeypatch.setenv("GGM_KERNELS_BACKEND", "reference")
    assert kernel("corrupt", "auto", torch.device("cpu"))[0] == "reference"
    monkeypatch.setenv("GGM_KERNELS_BACKEND", "nonsense")
    assert kernel("corrupt", "reference", torch.device("cpu"))[0] == "reference"
    with pytest.raises(
        ValueError, match="backend: got 'nonsense'; allowed: 'reference', 'cpu', 'cuda', 'triton', 'emulated'"
    ):
        corrupt(TOKENS, KEEP, 3, seed=1)
    with pytest.raises(ValueError, match="it is what GGM_KERNELS_BACKEND says"):
        corrupt(TOKENS, KEEP, 3, seed=1)
    monkeypatch.setenv("GGM_KERNELS_BACKEND", "")
    corrupt(TOKENS, KEEP, 3, seed=1)  # as if unset


@pytest.mark.parametrize(("name", "error"), [(3, TypeError), ("", ValueError), ("CPU", ValueError)])
def test_a_backend_that_is_no_name_is_refused(name, error):
    rows, one = torch.zeros(1, 1, 3), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(error, match="backend: got"):
        corrupt(TOKENS, KEEP, 3, seed=1, backend=name)
    with pytest.raises(error, match="backend: got"):
        ggm_kernels.sigmoid_bce(rows[0], one, 0.5, backend=name)
    with pytest.raises(error, match="backend: got"):
        ggm_kernels.glauber_step(TOKENS, rows, one, seed=1, step=0, backend=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_named_backend_that_is_not_there_raises():
    with pytest.raises(
        RuntimeError,
        match="backend 'cuda' is not available: .*(nvcc|no CUDA device|C\\+\\+ compiler)",
    ):
        corrupt(TOKENS, KEEP, 3, seed=1, backend="cuda")


def test_triton_says_how_to_run_without_a_gpu():
    code = """
import ggm_kernels, torch
state = ggm_kernels.backends()["triton"]
assert torch.cuda.is_available() or not state
print(state.reason)
"""
    assert "TRITON_INTERPRET=1" in run_python(code) or torch.cuda.is_available()


def test_import_needs_neither_triton_nor_the_core():
    code = """
import sys
sys.modules["triton"] = None
sys.modules["ggm_kernels._native"] = None
import torch, ggm_kernels
states = ggm_kernels.backends()
print([name for name, state in states.items() if state])
print(states["cpu"].reason)
print(states["triton"].reason)
ggm_kernels.corrupt(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1), 3, seed=1)
"""
    available, cpu, triton = run_python(code).splitlines()
    assert available == "['reference']"
    assert "install a C++ compiler" in cpu
    assert "pip install triton" in triton


@pytest.mark.parametrize("installed", [True, False])
def test_a_checkout_that_hides_the_install_says_so(tmp_path, installed):
    """Python started in a checkout imports the package there, not what pip installed elsewhere."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    left = shutil.ignore_patterns("_native*.so", "_build_info.json", "__pycache__")
    shutil.copytree(Path(ggm_kernels.__file__).parent, checkout / "ggm_kernels", ignore=left)
    (site / "ggm_kernels").mkdir(parents=True)
    if installed:
        (site / "ggm_kernels" / f"_native{EXTENSION_SUFFIXES[0]}").touch()
    code = f"""
import sys
from pathlib import Path
from unittest import mock
elsewhere = [entry for entry in sys.path if not Path(entry, "ggm_kernels").exists()]
sys.path[:] = [{str(checkout)!r}, {str(site)!r}, *elsewhere]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import ggm_kernels
print(ggm_kernels.backends()["cpu"].reason)
"""
    reason = run_python(code)
    assert f"pip install -e {checkout}" in reason and "C++ compiler" not in reason
    assert (f"hides the installed {site}/ggm_kernels: start Python in another folder" in reason) is installed
    assert ("was not put there by pip" in reason) is not installed


@pytest.mark.skipif(native.core is None, reason="no compiled core")
def test_one_openmp_runtime_is_shared_with_torch():
    code = """
import re, torch, ggm_kernels
ggm_kernels.corrupt(torch.zeros(64, 1024, dtype=torch.int64), torch.zeros(64), 3, seed=1, backend="cpu")
torch.rand(1000, 1000).sum()
print(len(set(re.findall(r"\\S*lib(?:g|i)?omp\\S*", open("/proc/self/maps").read()))))
"""
    assert int(run_python(code)) <= 1


@pytest.mark.skipif(native.core is None, reason="no compiled core")
def test_the_instruction_set_can_be_chosen_from_outside():
    worst = native.core.isas()[-1]
    code = "from ggm_kernels import native; print(native.core.isa())"
    assert run_python(code, GGM_KERNELS_ISA=worst) == worst


def test_a_gpu_older_than_the_machine_code_is_told():
    info = {"cuda": {"built": True, "archs": ["80", "90a", "120"]}}
    for able in ((8, 0), (9, 0), (12, 1)):
        assert native._why_too_old(able, info) is None
    assert native._why_too_old((7, 5), info) == (
        "the GPU is sm_75, the kernels are for sm_80 and later: build with GGM_CUDA_ARCHS=75"
    )
    assert native._why_too_old((7, 5), None) is None  # built by other means: nobody knows
