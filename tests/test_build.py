"""The build: what it decides, what it builds and what it tells."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import ggm_kernels
from build_native import driver, ninja_plan, toolchain
from ggm_kernels import Backend, __main__, build_info

ROOT = Path(__file__).resolve().parent.parent
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


# --- which architectures, which compiler ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("", ("80", "90")),
        (" ", ("80", "90")),
        ("86", ("86",)),
        ("80;90;120", ("80", "90", "120")),
        ("80, 90a", ("80", "90a")),
        ("80 90;", ("80", "90")),
    ],
)
def test_archs_are_read(text, archs):
    assert toolchain.parse_archs(text) == archs


@pytest.mark.parametrize("text", ["sm_80", "8.0", "native", "80;x", "8", ";"])
def test_archs_of_another_kind_are_refused(text):
    with pytest.raises(ValueError, match="GGM_CUDA_ARCHS"):
        toolchain.parse_archs(text)


def test_last_arch_gets_ptx_too():
    flags = toolchain.gencode_flags(("80", "120"))
    assert flags == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


@pytest.mark.parametrize(
    ("cc", "cxx"),
    [
        ("gcc", ("g++",)),
        ("/usr/bin/gcc-12", ("/usr/bin/g++-12",)),
        ("clang", ("clang++",)),
        ("x86_64-linux-gnu-gcc", ("x86_64-linux-gnu-g++",)),
        ("ccache gcc -m64", ("ccache", "g++", "-m64")),
        ("/bin/false", ("/bin/false",)),
    ],
)
def test_cxx_follows_cc(cc, cxx):
    assert toolchain._cxx_from_cc(cc) == cxx


@pytest.mark.parametrize(
    "env",
    [
        {"CC": "/bin/false"},
        {"CC": "/bin/true"},
        {"CXX": "/bin/false"},
        {"CXX": "/no/such/compiler", "CC": "gcc"},
        {"PATH": "/no/such/folder"},
    ],
)
def test_no_compiler_is_told_with_its_cause(env):
    with pytest.raises(toolchain.Unavailable, match="no C\\+\\+ compiler") as caught:
        toolchain.find_cxx(env)
    value = env.get("CXX") or env.get("CC") or "PATH"
    assert value in str(caught.value)


def test_spelled_out_flags_stand_in_for_unknown_march(tmp_path):
    gcc = shutil.which("g++")
    if gcc is None or not sysconfig.get_platform().endswith("x86_64"):
        pytest.skip("needs g++ on x86-64")
    old = tmp_path / "g++"
    old.write_text(f'#!/bin/sh\ncase "$*" in *-march=x86-64-v*) exit 1;; esac\nexec {gcc} "$@"\n')
    old.chmod(0o755)
    flags = toolchain.find_cxx({"CXX": str(old)}).isa_flags
    assert list(flags) == ["v2", "v3", "v4"]
    assert "-mavx2" in flags["v3"] and "-mfma" in flags["v3"]
    assert "-mavx512vl" in flags["v4"] and "-mavx512f" not in flags["v3"]


# --- what is built -------------------------------------------------------------------------------


def toy_checkout(root: Path, *, cuda: str = "int gpu() { return 1; }\n") -> Path:
    """Lay out a csrc/ of the real one's shape that compiles in a second."""
    sources = {
        "csrc/answer.h": "#define ANSWER 42\n",
        "csrc/bindings.cpp": "#include <Python.h>\nint cpu();\n"
        'static PyModuleDef def = {PyModuleDef_HEAD_INIT, "_native"};\n'
        'extern "C" __attribute__((visibility("default"))) PyObject* PyInit__native() {\n'
        "  PyObject* m = PyModule_Create(&def);\n"
        '  PyModule_AddIntConstant(m, "answer", cpu());\n  return m;\n}\n',
        "csrc/cpu/dispatch.cpp": "#define CAT(a, b) a##b\n#ifdef GGM_HAVE_ISA_v2\n"
        "int op_v2(); int cpu() { return op_v2(); }\n"
        "#else\nint op_plain(); int cpu() { return op_plain(); }\n#endif\n",
        "csrc/cpu/op.cpp": '#include "answer.h"\n#define CAT2(a, b) a##b\n'
        "#define CAT(a, b) CAT2(a, b)\nint CAT(op_, GGM_ISA)() { return ANSWER; }\n",
        "csrc/cuda/op.cu": cuda,
    }
    for name, text in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def environment(monkeypatch):
    """Build variables as an untouched shell has them; a function to read the environment."""
    pytest.importorskip("ninja")
    pytest.importorskip("pybind11")
    for name in ("CC", "CXX", "GGM_CUDA", "GGM_NATIVE", "GGM_CUDA_ARCHS", "GGM_NVCC"):
        monkeypatch.delenv(name, raising=False)
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    return lambda **changes: {**os.environ, **changes}


def answer_of(library: Path) -> int:
    code = "import importlib.util as u, sys; s = u.spec_from_file_location('_native', sys.argv[1])"
    code += "; m = u.module_from_spec(s); s.loader.exec_module(m); print(m.answer)"
    return int(subprocess.check_output([sys.executable, "-c", code, str(library)]))


def test_build_follows_a_changed_header(tmp_path, environment):
    env = environment(GGM_CUDA="0")
    outcome = driver.build(toy_checkout(tmp_path), env)
    assert answer_of(outcome.library) == 42
    assert outcome.info["cuda"] == {"built": False, "reason": "forbidden by GGM_CUDA=0"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.o")}
    (tmp_path / "csrc" / "answer.h").write_text("#define ANSWER 7\n")
    assert answer_of(driver.build(tmp_path, env).library) == 7
    rebuilt = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert rebuilt == {"op.o"}


def test_compile_error_ends_as_no_library_with_the_reason(tmp_path, environment):
    toy_checkout(tmp_path)
    (tmp_path / "csrc/cpu/op.cpp").write_text("int broken(\n")
    outcome = driver.build(tmp_path, environment(GGM_CUDA="0"))
    assert outcome.library is None
    assert not outcome.info["native"]["built"]
    assert "op.cpp" in outcome.info["native"]["reason"]
    with pytest.raises(driver.DemandNotMet, match=r"GGM_NATIVE=1, but .*op\.cpp"):
        driver.build(tmp_path, environment(GGM_CUDA="0", GGM_NATIVE="1"))


@pytest.mark.parametrize(
    ("switches", "part"),
    [
        ({"GGM_NATIVE": "1", "CC": "/bin/false"}, "CC=/bin/false"),
        ({"GGM_CUDA": "1", "CC": "/bin/false"}, "CC=/bin/false"),
        ({"GGM_CUDA": "1", "GGM_NVCC": "/no/such/nvcc"}, "nvcc"),
    ],
)
def test_unmet_demand_fails(tmp_path, environment, switches, part):
    with pytest.raises(driver.DemandNotMet, match=part):
        driver.build(toy_checkout(tmp_path), environment(**switches))


@pytest.mark.parametrize(
    "switches", [{"GGM_CUDA": "yes"}, {"GGM_NATIVE": "2"}, {"GGM_CUDA": "1", "GGM_NATIVE": "0"}]
)
def test_meaningless_switches_are_refused(tmp_path, environment, switches):
    with pytest.raises(ValueError, match="GGM_"):
        driver.build(tmp_path, environment(**switches))


def test_native_forbidden(tmp_path, environment):
    outcome = driver.build(tmp_path, environment(GGM_NATIVE="0"))
    assert outcome.library is None
    assert outcome.info["native"]["reason"] == "forbidden by GGM_NATIVE=0"


@needs_nvcc
def test_broken_cuda_is_left_out_unless_demanded(tmp_path, environment):
    toy_checkout(tmp_path, cuda="__global__ void broken(\n")
    env = environment(GGM_CUDA_ARCHS="80")
    outcome = driver.build(tmp_path, env)
    assert answer_of(outcome.library) == 42
    assert not outcome.info["cuda"]["built"]
    assert "op.cu" in outcome.info["cuda"]["reason"]
    with pytest.raises(driver.DemandNotMet, match=r"GGM_CUDA=1, but .*op\.cu"):
        driver.build(tmp_path, {**env, "GGM_CUDA": "1"})


@needs_nvcc
def test_cuda_is_built_for_the_archs_asked_for(tmp_path, environment):
    outcome = driver.build(toy_checkout(tmp_path), environment(GGM_CUDA_ARCHS="86"))
    assert answer_of(outcome.library) == 42
    assert outcome.info["cuda"]["archs"] == ["86"]
    assert outcome.info["cuda"]["ptx"] == "86"


def test_levels_are_linked_from_low_to_high(tmp_path):
    """The linker keeps the first copy of an inline function: it must run on every processor."""
    pytest.importorskip("ninja")
    levels = {level: (f"-march=x86-64-{level}",) for level in ("v2", "v3", "v4")}
    cxx = toolchain.CxxCompiler(("g++",), "g++ 12", levels)
    path = ninja_plan.write(ninja_plan.Plan(toy_checkout(tmp_path), cxx, None))
    text = (tmp_path / path).read_text().replace("$\n", "")
    link = next(line for line in text.splitlines() if ": link" in line or ":  " in line)
    kinds = [word.split("/")[-2] for word in link.split() if word.endswith(".o")]
    assert kinds == ["base", "base", "v2", "v3", "v4"]
    assert text.count("-ffp-contract=off") == 5
    assert "-march=native" not in text


def test_no_compiler_brings_an_openmp_runtime_of_its_own(tmp_path):
    """clang's would be a second one beside that of PyTorch: loops are shared out by csrc/cpu/parallel.h."""
    pytest.importorskip("ninja")
    for path in (ROOT / "csrc" / "cpu").iterdir():
        assert not any(line.lstrip().startswith("#pragma omp") for line in path.read_text().splitlines()), (
            path
        )
    cxx = toolchain.CxxCompiler(("clang++",), "clang 14", {"v2": ()})
    text = (tmp_path / ninja_plan.write(ninja_plan.Plan(toy_checkout(tmp_path), cxx, None))).read_text()
    assert "-lgomp" in text and "-fopenmp" not in text


# --- what is told --------------------------------------------------------------------------------

RECORD = {
    "version": "0.1.0",
    "built_at": "2026-01-02T03:04:05Z",
    "python": "CPython 3.11.7",
    "platform": "Linux x86_64",
    "native": {"built": True, "seconds": 12.3},
    "compiler": "g++ 12.2.0",
    "isa": {"built": ["v2", "v3"], "left_out": {"v4": "unknown to the compiler"}},
    "openmp": False,
    "cuda": {"built": True, "nvcc": "13.0.88", "archs": ["80", "90"], "ptx": "90"},
}


def test_record_is_told():
    rows = dict(build_info.describe(RECORD))
    assert rows["compiler"] == "g++ 12.2.0"
    assert rows["CPU levels"] == "v2, v3; v4 left out: unknown to the compiler"
    assert rows["OpenMP"].startswith("no")
    assert rows["CUDA"] == "sm_80, sm_90, PTX of compute_90 (nvcc 13.0.88)"
    no_cuda = {**RECORD, "cuda": {"built": False, "reason": "no nvcc"}}
    assert dict(build_info.describe(no_cuda))["CUDA"] == "none: no nvcc"


def test_version_is_that_of_the_build():
    """Told by the package itself: a checkout on the path that pip does not know has one, too."""
    assert ggm_kernels.__version__ == importlib.metadata.version("ggm-kernels")


def test_record_survives_the_file(tmp_path):
    assert build_info.read(tmp_path) is None
    build_info.write(RECORD, tmp_path)
    assert build_info.read(tmp_path) == RECORD
    (tmp_path / build_info.FILE_NAME).write_text("{")
    assert build_info.read(tmp_path) is None


def test_a_core_of_other_sources_is_told(tmp_path):
    folder = tmp_path / "csrc" / "cpu"
    folder.mkdir(parents=True)
    (folder / "op.cpp").write_text("int op;")
    (folder / "notes.txt").write_text("not compiled")
    native = {"built": True, "seconds": 1.0, "sources": build_info.digest_of_sources(tmp_path)}
    record = {**RECORD, "native": native}
    assert build_info.why_stale(record, tmp_path) is None
    assert build_info.why_stale(None, tmp_path) is None  # nothing is known of it
    assert build_info.why_stale(record, tmp_path / "csrc") is None  # an installation: no sources
    (folder / "notes.txt").write_text("nor now")
    assert build_info.why_stale(record, tmp_path) is None
    (folder / "op.cpp").write_text("int Op;")
    assert f"pip install -e {tmp_path}" in build_info.why_stale(record, tmp_path)
    (folder / "op.cpp").rename(folder / "other.cpp")
    assert build_info.why_stale(record, tmp_path)
    assert build_info.why_stale(RECORD, tmp_path)  # by a build from before digests were noted


@pytest.mark.parametrize(
    ("info", "library", "told"),
    [
        (RECORD, "_native.so", "_native.so"),
        (RECORD, None, "missing, though it was built"),
        (None, None, "none"),
        (None, "_native.so", "_native.so"),
        ({**RECORD, "native": {"built": False, "reason": "no g++"}}, "_native.so", "another build"),
    ],
)
def test_record_and_library_are_held_against_each_other(info, library, told):
    rows = dict(__main__.build_rows(info, library))
    assert told in rows["library"]
    assert ("record" in rows) == (info is None)


def test_backends_are_told():
    ops = frozenset({"sigmoid_bce", "corrupt", "corrupt_internal"})
    states = {"cpu": Backend(True, "v3", ops), "cuda": Backend(False, "no GPU", frozenset())}
    assert __main__.backend_rows(states) == [
        ("cpu", "yes  v3"),
        ("", "     corrupt, sigmoid_bce"),
        ("cuda", "no   no GPU"),
    ]


def test_a_reader_that_leaves_early_is_no_error():
    line = f"{sys.executable} -m ggm_kernels | head -0"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_build_without_a_core_ends_with_saying_so(tmp_path):
    """pip and setuptools print much after the build of the extension; a line further up nobody finds."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("build_native", "ggm_kernels"):
        left = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left)
    (tmp_path / "ninja.py").write_text("raise ImportError('hidden', name='ninja')")
    command = [sys.executable, "setup.py", "build", "-b", str(tmp_path / "out")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GGM_")}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**env, "PYTHONPATH": str(tmp_path), "GGM_CUDA": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *_, said, what_to_do = done.stderr.splitlines()
    assert said.startswith("ggm-kernels: built WITHOUT its compiled core")
    assert "the Python package ninja is missing (pip install ninja pybind11" in said
    assert "install again" in what_to_do
    assert (next((tmp_path / "out").glob("lib*")) / "ggm_kernels" / "py.typed").exists()


def test_report_runs():
    told = subprocess.check_output([sys.executable, "-m", "ggm_kernels"], text=True, cwd=ROOT)
    for word in ("Build", "Now", "torch", "reference", "cpu", "cuda", "triton"):
        assert word in told


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (
            "[1/2] C++\nFAILED: a.o \na.cpp:1:2: error: expected\nninja: stopped",
            "a.cpp:1:2: error: expected",
        ),
        (
            "nvcc fatal   : Unsupported gpu architecture",
            "nvcc fatal   : Unsupported gpu architecture",
        ),
        ("ld: cannot find -lx\n", "ld: cannot find -lx"),
        ("", "no output"),
    ],
)
def test_first_error_is_picked(output, line):
    assert driver.first_error(output) == line
