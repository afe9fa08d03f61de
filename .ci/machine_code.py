"""Report on the machine code of every GPU kernel, CUDA's and Triton's: what a machine without a GPU can tell.

Usage: ``machine_code.py write`` makes ``.ci/machine_code.json`` anew, and of it the table in
``docs/gpu-notes.md``. ``machine_code.py check`` compiles, compares with that file and says what got worse: a
kernel that spills, lost its 128-bit loads or stores or its matrix instructions, or needs so many registers
that fewer of its blocks fit on a processor; of two architectures, and two of Triton's kernels, unless
``--archs 80,100`` names others.
``--only cuda`` or ``--only triton`` looks at one kind. A kind whose sources, flags and compiler are those
that the report was made from is not compiled again by ``check``, unless ``--anyway`` asks for it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / ".ci")]

from cuda_report import STRICT_FLAGS, demangle, shorten  # noqa: E402
from page_tables import replace_table  # noqa: E402

from build_native.ninja_plan import CUDA_FLAGS  # noqa: E402
from build_native.toolchain import find_cuda  # noqa: E402

REPORT = ROOT / ".ci" / "machine_code.json"
PAGE = ROOT / "docs" / "gpu-notes.md"
ARCHS = ("80", "90", "100", "120")
CHECKED_ARCHS = ("90", "120")  # of every day, for half the minutes: wgmma, and the fewest threads a processor
TRITON_ARCHS = ("80", "90")
REGISTERS = 65536  # of a processor
MOST_THREADS = {"80": 2048, "90": 2048, "100": 2048, "120": 1536}
# Instructions by which a kernel is judged, as nvdisasm writes them.
COUNTED = {
    "loads_128": r"\bLDG\.\S*128",
    "stores_128": r"\bSTG\.\S*128",
    "local": r"\b(?:LDL|STL)\b",
    "matrix": r"\b(?:HMMA|HGMMA|UTCHMMA|UTCQMMA|QGMMA|DMMA)\b",
    "wgmma": r"\bHGMMA\b",
    "special": r"\bMUFU\b",
}
# A block of each kernel, where it is not the 256 threads that most have.
THREADS = {"threshold_kernel": 512, "commit_kernel": 512, "draw_kernel": 128}

# Kernels that the page shows, for tokens of 8 bytes and bfloat16 on sm_90, and what it calls them.
SHOWN = {
    "corrupt_kernel<long, 0, 0, true>": "corrupt, uniform",
    "corrupt_kernel<long, 1, 0, true>": "corrupt, alias table",
    "corrupt_kernel<long, 2, 0, true>": "corrupt, absorbing",
    "forward_kernel<ggm::BFloat16, 8>": "forward of the head",
    "gather_kernel<ggm::BFloat16>": "loss from logits",
    "hidden_kernel<ggm::BFloat16, 8>": "gradient of hidden",
    "token_kernel<ggm::BFloat16, 8>": "gradient of weight",
    "group_kernel<ggm::BFloat16, false>": "race: groups",
    "group_kernel<ggm::BFloat16, true>": "race: groups, with edits, filters or entropy",
    "draw_kernel<ggm::BFloat16, false, false>": "race: rows",
    "draw_kernel<ggm::BFloat16, false, true>": "race of one group",
    "threshold_kernel<ggm::BFloat16>": "threshold of filters",
    "commit_kernel<ggm::BFloat16>": "commit",
}

# What the machine code of a kind is made from, beside flags and compiler.
SOURCES = {
    "cuda": ("csrc/*.h", "csrc/cuda/*", "csrc/numerics/*"),
    "triton": (
        "ggm_kernels/triton/*.py",
        "ggm_kernels/arguments/*.py",
        "ggm_kernels/products/*.py",
        "ggm_kernels/randomness.py",
        "tests/ggm_kernels/compile_triton.py",
    ),
}
MADE_FROM = "made from"

Kernels = dict[str, dict[str, int]]


def main() -> int:
    """Write the report or hold the code against it."""
    options = parser().parse_args()
    cuda_archs = ARCHS if options.what == "write" else CHECKED_ARCHS
    triton_archs = TRITON_ARCHS
    if options.archs:
        cuda_archs = tuple(options.archs.split(","))
        triton_archs = tuple(arch for arch in TRITON_ARCHS if arch in cuda_archs)
    if options.only:
        cuda_archs, triton_archs = (cuda_archs, ()) if options.only == "cuda" else ((), triton_archs)
    before = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    if options.what == "write":
        return write(before, {"cuda": cuda_archs, "triton": triton_archs})
    known = {} if options.anyway else before.get(MADE_FROM, {})
    return check(before, {"cuda": cuda_archs, "triton": triton_archs}, known)


def parser() -> argparse.ArgumentParser:
    """Words and flags."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("what", choices=("write", "check"))
    made.add_argument(
        "--archs", help=f"default: {','.join(ARCHS)} to write, {','.join(CHECKED_ARCHS)} to check"
    )
    made.add_argument("--only", choices=("cuda", "triton"))
    made.add_argument("--anyway", action="store_true", help="compile what the report was made from, too")
    return made


Archs = dict[str, tuple[str, ...]]


def write(before: dict, archs: Archs) -> int:
    """Compile, and write the report and the page's table."""
    report = {**before, **measure(archs["cuda"], archs["triton"])}
    # Of some architectures alone it is not known what the others were made from.
    whole = {"cuda": ARCHS, "triton": TRITON_ARCHS}
    made_from = {**before.get(MADE_FROM, {}), **{kind: "" for kind in whole if archs[kind]}}
    made_from |= {kind: digest_of(kind) for kind in whole if archs[kind] == whole[kind]}
    report[MADE_FROM] = made_from
    REPORT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), report))
    return 0


def check(before: dict, archs: Archs, known: dict[str, str]) -> int:
    """Compile what is not known, and say what got worse."""
    same = [kind for kind in archs if archs[kind] and known.get(kind) == digest_of(kind)]
    for kind in same:
        print(f"{kind}: sources, flags and compiler are those that {REPORT.name} was made from")
    wanted = {kind: () if kind in same else archs[kind] for kind in archs}
    found = measure(wanted["cuda"], wanted["triton"])
    worse = [line for name, now in found.items() for line in compare(name, before.get(name, {}), now)]
    print(*worse, sep="\n", file=sys.stderr)
    total = sum(len(kernels) for kernels in found.values())
    if found:
        told = f"{total} kernels of {', '.join(found)}: {len(worse) or 'nothing'} worse"
        print(f"{told} than {REPORT.name} says")
    return 1 if worse or not (total or same) else 0


def digest_of(kind: str) -> str:
    """Of all that the machine code of a kind depends on."""
    digest = hashlib.sha256(compiler_of(kind).encode())
    for file in sorted({file for pattern in SOURCES[kind] for file in ROOT.glob(pattern) if file.is_file()}):
        digest.update(f"{file.relative_to(ROOT)}\0{len(file.read_bytes())}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def compiler_of(kind: str) -> str:
    """Its version, and the flags."""
    if kind == "triton":
        return version("triton")
    return "\n".join([run([find_cuda(os.environ).command, "--version"]), *CUDA_FLAGS, *STRICT_FLAGS])


def with_table(page: str, report: dict[str, Kernels]) -> str:
    """The page with the table that the report makes."""
    rows = [
        "| kernel | registers | blocks on a processor | instructions | 128-bit loads | stores |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, shown in SHOWN.items():
        kernel = report["cuda sm_90"][name]
        what = ("registers", "blocks", "instructions", "loads_128", "stores_128")
        rows.append(f"| {shown} | {' | '.join(str(kernel[key]) for key in what)} |")
    return replace_table(page, REPORT.name, rows)


def measure(cuda_archs: Sequence[str], triton_archs: Sequence[str]) -> dict[str, Kernels]:
    """Kernels of each kind and architecture, as ``cuda sm_90``."""
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        # Triton's first: of each architecture one process, which takes longer than any file.
        tasks = {f"triton sm_{arch}": [pool.submit(of_triton, arch)] for arch in triton_archs}
        for arch in cuda_archs:
            tasks[f"cuda sm_{arch}"] = [pool.submit(of_cuda, source, arch) for source in sources]
        return {name: merged([task.result() for task in parts]) for name, parts in tasks.items()}


def merged(parts: list[Kernels]) -> Kernels:
    """The kernels of all parts."""
    return {name: kernel for part in parts for name, kernel in part.items()}


def of_cuda(source: Path, arch: str) -> Kernels:
    """Compile one file strictly and count."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "out.cubin")
        flags = [*CUDA_FLAGS, *STRICT_FLAGS, f"-arch=sm_{arch}", "-cubin"]
        run([find_cuda(os.environ).command, *flags, str(source), "-o", str(cubin)])
        return of_cubin(cubin, arch)


def of_triton(arch: str) -> Kernels:
    """Compile all Triton kernels in a process of its own, and count."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TRITON_CACHE_DIR": f"{folder}/cache", "PYTHONPATH": str(ROOT)}
        environment.pop("TRITON_INTERPRET", None)
        script = ROOT / "tests/ggm_kernels/compile_triton.py"
        run([sys.executable, str(script), arch, folder], environment)
        return merged(
            [{cubin.stem: only(of_cubin(cubin, arch))} for cubin in sorted(Path(folder).glob("*.cubin"))]
        )


def only(kernels: Kernels) -> dict[str, int]:
    """The one kernel of a file."""
    (kernel,) = kernels.values()
    return kernel


def of_cubin(cubin: Path, arch: str) -> Kernels:
    """Count the instructions and resources of every kernel of a file."""
    code = split_functions(run([tool("nvdisasm"), "-c", str(cubin)]))
    resources = parse_resources(run([tool("cuobjdump"), "-res-usage", str(cubin)]))
    names = [name for name in code if name in resources]
    kernels = {}
    for name, short in zip(names, demangle(names), strict=True):
        lines = code[name]
        counts = {what: len(re.findall(pattern, lines)) for what, pattern in COUNTED.items()}
        registers, stack = resources[name]
        kernels[shorten(short).removeprefix("ggm::cuda::")] = {
            "registers": registers,
            "stack": stack,
            "instructions": len(re.findall(r"/\*[0-9a-f]{4,}\*/\s+\S", lines)),
            "blocks": blocks_of(shorten(short), registers, arch),
            **counts,
        }
    return kernels


def blocks_of(name: str, registers: int, arch: str) -> int:
    """Blocks that fit on a processor by registers, which are given to warps in units of 256."""
    kernel = re.split(r"[< ]", name)[0].rsplit("::", 1)[-1]
    threads = THREADS.get(kernel, 256)
    per_warp = -(-registers * 32 // 256) * 256
    return min(REGISTERS // (per_warp * threads // 32), MOST_THREADS[arch] // threads)


def split_functions(text: str) -> dict[str, str]:
    """Machine code of every function by its mangled name."""
    parts = re.split(r"^\.text\.(\S+):$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def parse_resources(text: str) -> dict[str, tuple[int, int]]:
    """Registers, and bytes of stack and local memory, of every function."""
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", text)
    return {name: (int(registers), int(stack) + int(local)) for name, registers, stack, local in found}


def may_spill(name: str) -> bool:
    """Whether a kernel has leave to keep a little in memory: Triton's commit at its largest block alone."""
    return name.startswith("_commit_kernel ") and "BLOCK=4096" in name


def compare(where: str, before: Kernels, now: Kernels) -> list[str]:
    """What got worse, a line each."""
    lines = [f"{where}: {name} is gone" for name in before if name not in now]
    for name, kernel in now.items():
        old = before.get(name)
        if old is None:
            lines.append(f"{where}: {name} is not in the report: python .ci/machine_code.py write")
            continue
        for what in ("loads_128", "stores_128", "matrix", "wgmma", "blocks"):
            if kernel[what] < old[what]:
                lines.append(f"{where}: {name}: {what} {old[what]} -> {kernel[what]}")
        for what in ("stack", "local"):
            if kernel[what] > (old[what] if may_spill(name) else 0):
                lines.append(f"{where}: {name}: spills, {what} {old[what]} -> {kernel[what]}")
    return lines


def tool(name: str) -> str:
    """A program of the CUDA toolkit, or the one that Triton brings."""
    if found := shutil.which(name):
        return found
    import triton

    return str(Path(triton.__file__).parent / "backends/nvidia/bin" / name)


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Standard output; the complaint, and the end, where the program fails."""
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        complaint = [line for line in done.stderr.splitlines() if not line.startswith("ptxas info")]
        raise SystemExit("\n".join([" ".join(command), *complaint[:40]]))
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
