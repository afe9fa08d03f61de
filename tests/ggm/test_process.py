"""Settings of a command's process."""

import os
import platform
import subprocess
import sys

import pytest

# Page faults of a hundred steps that make eight tensors of 1 MB each and free them, after a first one.
STEPS = """
import resource, torch
def step():
    tensors = [torch.ones(2**18) for _ in range(8)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
# What glibc starts with; what it makes of that by itself depends on what is freed first.
GIVES_BACK = "import ctypes\nctypes.CDLL(None).mallopt(-1, 131072)\n"
PREPARED = "from ggm.commands.environment import prepare\nprepare()\n"


def run(code: str, **variables: str) -> str:
    chosen = ("MALLOC_", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(chosen)}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other settings")
def test_memory_that_a_step_frees_serves_the_next_one():
    assert int(run(GIVES_BACK + PREPARED + STEPS)) < 5000
    assert int(run(GIVES_BACK + STEPS)) > 20_000  # of 2048 pages in each step


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other settings")
def test_settings_of_the_environment_are_left_alone():
    assert int(run(PREPARED + STEPS, MALLOC_TRIM_THRESHOLD_="131072")) > 20_000


def test_torch_finds_how_long_threads_spin():
    told = "import os, sys\nprint(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    assert run(PREPARED + told) == "10000 False"
    assert run(PREPARED + told, GOMP_SPINCOUNT="5") == "5 False"
