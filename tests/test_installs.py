"""Installs as users do them, in pip's own isolation; ``pytest -m slow tests/test_installs.py``."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from clients import pins

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Copy what a clone would hold."""
    target = tmp_path_factory.mktemp("clone") / "with blank"
    left = ["build", ".git", ".venv", ".*_cache", "*.so", "_build_info.json", "*.egg-info"]
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*left, "__pycache__", "outputs"))
    return target


@pytest.fixture
def fresh_python(tmp_path) -> Path:
    """Make a virtual environment that sees this one's torch but no installed ggm_kernels."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    purelib = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    # Python reads no .pth file in a folder that a .pth file adds: editable installs stay out.
    Path(purelib, "outer.pth").write_text("\n".join(site.getsitepackages()))
    return python


def pip_install(python: Path, *words: str, **changes: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GGM_")}
    command = [str(python), "-m", "pip", "install", "--no-deps", *words]
    done = subprocess.run(command, env={**env, **changes}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def report(python: Path) -> str:
    return subprocess.check_output([str(python), "-m", "ggm_kernels"], text=True, cwd=python.parent)


def test_install_without_cuda_then_without_a_compiler(checkout, fresh_python):
    pip_install(fresh_python, "-e", str(checkout), GGM_CUDA="0")
    told = report(fresh_python)
    assert "none: forbidden by GGM_CUDA=0" in told
    assert "cpu        yes" in told
    # The library of an earlier install is not left behind.
    pip_install(fresh_python, "-e", str(checkout), CC="/bin/false")
    assert not list(checkout.glob("ggm_kernels/_native*"))
    told = report(fresh_python)
    assert "no C++ compiler: CC=/bin/false" in told
    assert "reference  yes" in told
    assert "cpu        no" in told


@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang")
def test_an_install_with_clang_shares_the_threads_of_torch(checkout, fresh_python):
    pip_install(fresh_python, str(checkout), GGM_CUDA="0", GGM_NATIVE="1", CXX="clang++")
    code = """
import re, torch, ggm_kernels
torch.set_num_threads(3)
before = len(os.listdir("/proc/self/task"))
ggm_kernels.corrupt(torch.zeros(64, 1024, dtype=torch.int64), torch.zeros(64), 3, seed=1, backend="cpu")
print(len(os.listdir("/proc/self/task")) - before)
torch.rand(1000, 1000) @ torch.rand(1000, 1000)
print(len(set(re.findall(r"\\S*lib(?:g|i)?omp\\S*", open("/proc/self/maps").read()))))
"""
    told = subprocess.check_output(
        [fresh_python, "-c", "import os" + code], text=True, cwd=fresh_python.parent
    )
    threads, runtimes = told.split()
    assert (int(threads), int(runtimes)) == (2, 1)


def test_a_wheel_needs_no_compiler(checkout, fresh_python, tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("GGM_")}
    made = subprocess.run(
        ["make", "wheel", f"PYTHON={sys.executable}"],
        cwd=checkout,
        env={**env, "GGM_CUDA": "0"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert re.search(r"-manylinux_2_\d+_\w+\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if ".so" in name]
    # The core alone: no OpenMP beside that of torch.
    assert len(libraries) == 1 and libraries[0].startswith("ggm_kernels/_native")
    pip_install(fresh_python, "--no-index", str(wheel), PATH=str(tmp_path), CC="/bin/false", CXX="/bin/false")
    told = report(fresh_python)
    assert "cpu        yes" in told and str(checkout) not in told
    code = """
import re, torch, ggm_kernels
tokens = torch.zeros(4, 8, dtype=torch.int64)
noisy = [ggm_kernels.corrupt(tokens, 0.5, 9, seed=1, backend=name)[0] for name in ("cpu", "reference")]
assert torch.equal(*noisy) and not torch.equal(noisy[0], tokens)
print(len(set(re.findall(r"\\S*lib(?:g|i)?omp\\S*", open("/proc/self/maps").read()))))
"""
    told = subprocess.check_output([fresh_python, "-c", code], text=True, cwd=fresh_python.parent)
    assert told.strip() == "1"


@needs_nvcc
def test_install_with_nvcc(checkout, fresh_python):
    pip_install(fresh_python, str(checkout), GGM_CUDA="1")
    assert "sm_80, sm_90, PTX of compute_90" in report(fresh_python)


def test_sdist_holds_what_a_build_needs(checkout, fresh_python, tmp_path):
    subprocess.run([fresh_python, "-m", "pip", "install", "-q", "build"], check=True)
    subprocess.run([fresh_python, "-m", "build", "--sdist", "-o", str(tmp_path), str(checkout)], check=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {Path(*Path(member.name).parts[1:]) for member in archive if member.isfile()}
    left = re.compile(r"build/|dist/|ggm_kernels\.egg-info/|\.(?!ci/|gitignore)|.*\.(so|pyc)$")
    files = {path.relative_to(checkout) for path in checkout.rglob("*") if path.is_file()}
    wanted = {path for path in files if not left.match(str(path))}
    assert wanted - held <= {Path("ggm_kernels/_build_info.json")}
    pip_install(fresh_python, str(sdist), GGM_CUDA="0", GGM_NATIVE="1")
    told = report(fresh_python)
    assert "cpu        yes" in told
    assert str(checkout) not in told


@pytest.fixture(scope="module")
def mypy_cache(tmp_path_factory) -> Path:
    """What mypy knows of torch, which it takes half a minute to read; files of ours that differ it reads anew."""
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.parametrize("editable", [False, True])
def test_mypy_sees_types(checkout, fresh_python, tmp_path, mypy_cache, editable):
    pytest.importorskip("mypy")
    pip_install(fresh_python, *["-e"][: int(editable)], str(checkout), GGM_CUDA="0", GGM_NATIVE="0")
    program = tmp_path / "program.py"
    program.write_text("import ggm, ggm_kernels\nreveal_type(ggm_kernels.corrupt)\nggm_kernels.corrupt(1)\n")
    command = [sys.executable, "-m", "mypy", "--python-executable", str(fresh_python), str(program)]
    command += ["--cache-dir", str(mypy_cache)]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert 'Revealed type is "def (tokens: torch' in told and "import-untyped" not in told, told
    assert "program.py:3: error: Missing positional arguments" in told


def test_integrations_with_the_oldest_versions(tmp_path):
    """The newest that are allowed are what the other tests have."""
    oldest = {library: f"{pins(library)[0]}.0" for library in ("diffusers", "transformers")}
    wanted = [f"{library}=={version}" for library, version in oldest.items()]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--no-deps",
        "--target",
        str(tmp_path),
    ]
    subprocess.run([*pip, *wanted], check=True)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import diffusers, transformers; print(diffusers.__version__, transformers.__version__)"
    found = subprocess.check_output([sys.executable, "-c", code], env=env, text=True).split()
    assert found == list(oldest.values())
    tests = [sys.executable, "-m", "pytest", "-q", "tests/ggm_kernels/integrations"]
    done = subprocess.run(tests, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout
