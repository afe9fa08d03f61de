"""Every op on the instruction sets of older processors, which no other test meets where the processor is new."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ggm_kernels
from build_native.sanitize import CHOICE, ROOT, TESTS
from ggm_kernels import native

OLDER = native.core.isas()[1:] if native.core else []


# One of them each time: the one that most processors have.
@pytest.mark.parametrize(
    "level", [*OLDER[:1], *(pytest.param(level, marks=pytest.mark.slow) for level in OLDER[1:])]
)
def test_an_older_instruction_set_agrees_with_the_truth(level):
    env = {**os.environ, "GGM_KERNELS_ISA": level, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *TESTS, *CHOICE]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"\d{3} passed", done.stdout), done.stdout[-4000:]


def test_every_op_is_among_them():
    called = "".join(
        Path(ROOT, file).read_text(encoding="utf-8") for file in [*TESTS, "tests/random_cases.py"]
    )
    ops = {name for name in ggm_kernels.__all__ if name.islower() and callable(getattr(ggm_kernels, name))}
    missing = {op for op in ops if not re.search(rf"\b{op}\b", called)}
    assert not missing
