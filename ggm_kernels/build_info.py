"""The record of what the build made and left out, and how it is shown.

setup.py loads this file by its path, in pip's isolation, before torch is there: it imports nothing
but the standard library.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

FILE_NAME = "_build_info.json"


def read(folder: Path | None = None) -> dict[str, Any] | None:
    """Return the record that the build left in the package folder, or None where there is none."""
    path = (folder or Path(__file__).parent) / FILE_NAME
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write(info: dict[str, Any], folder: Path) -> None:
    """Leave a record in a package folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_text(json.dumps(info, indent=2) + "\n")


def digest_of_sources(checkout: Path) -> str | None:
    """Digest of what the native core is compiled from; None in a folder without it."""
    folder = checkout / "csrc"
    if not folder.is_dir():
        return None
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.*")):
        if path.suffix in (".h", ".cpp", ".cu"):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def why_stale(info: dict[str, Any] | None, checkout: Path) -> str | None:
    """What to do about a core that was built from other sources than stand beside it; None if it was not."""
    if info is None or not info["native"]["built"]:
        return None
    if digest_of_sources(checkout) in (None, info["native"].get("sources")):
        return None
    return f"the compiled core is not that of {checkout / 'csrc'} as it is now: pip install -e {checkout}"


def describe(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Say what a record holds in rows of (what, how)."""
    made_for = f"for {info['python']}, {info['platform']}"
    native = info["native"]
    if not native["built"]:
        return [
            ("built", f"{info['built_at']} {made_for}"),
            ("native core", f"none: {native['reason']}"),
        ]
    return [
        ("built", f"{info['built_at']} in {native['seconds']} s {made_for}"),
        ("compiler", info["compiler"]),
        ("CPU levels", _isa_text(info["isa"])),
        ("OpenMP", "yes" if info["openmp"] else "no: libgomp is not there to link with"),
        ("CUDA", _cuda_text(info["cuda"])),
    ]


def align(rows: list[tuple[str, str]]) -> str:
    """Lay rows out in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)


def _isa_text(isa: dict[str, Any]) -> str:
    left_out = "".join(f"; {level} left out: {why}" for level, why in isa["left_out"].items())
    return ", ".join(isa["built"]) + left_out


def _cuda_text(cuda: dict[str, Any]) -> str:
    if not cuda["built"]:
        return f"none: {cuda['reason']}"
    archs = ", ".join(f"sm_{arch}" for arch in cuda["archs"])
    return f"{archs}, PTX of compute_{cuda['ptx']} (nvcc {cuda['nvcc']})"
