"""`torchrun` and `accelerate launch` start two processes, which have the curve of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import PATIENCE
from small_runs import curve, trained, written

pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
    ),
]

ROOT = Path(__file__).parents[2]
# Python runs this before any script: whoever is started tells of it.
TELLING = """\
import os, sys
if "RANK" in os.environ and "-m" in sys.orig_argv and "ggm" in sys.orig_argv:
    # In one write: torchrun starts Python unbuffered, which else writes word by word.
    os.write(1, f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}\\n".encode())
"""
LAUNCHERS = {
    "torchrun": "torch.distributed.run --standalone --nproc-per-node 2",
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2",
    "accelerate_fsdp": "accelerate.commands.launch --use_fsdp --fsdp_version 2 --num_processes 2",
}


def test_a_line_of_a_process_is_one_write():
    """Or those of two processes mix: a pipe of packets keeps writes apart."""
    reading, writing = os.pipe2(os.O_DIRECT)
    words = [sys.executable, "-u", "-c", TELLING, "-m", "ggm"]  # unbuffered, as torchrun starts it
    subprocess.run(words, stdout=writing, env={**os.environ, "RANK": "0", "WORLD_SIZE": "2"}, check=True)
    os.close(writing)
    with open(reading, "rb", buffering=0) as packets:
        assert list(iter(lambda: packets.read(4096), b"")) == [b"process 0 of 2\n"]


@pytest.mark.parametrize(
    "launcher",
    [
        "accelerate",
        pytest.param("torchrun", marks=pytest.mark.slow),  # which starts those of other tests
        pytest.param("accelerate_fsdp", marks=pytest.mark.slow),
    ],
)
def test_two_processes_have_the_curve_of_one(launcher, tmp_path):
    trained(tmp_path, out="one")
    (tmp_path / "sitecustomize.py").write_text(TELLING)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    # No GPU is taken where there are some: one may not be enough for two.
    env["CUDA_VISIBLE_DEVICES"] = ""
    words = ["-m", *LAUNCHERS[launcher].split(), "-m", "ggm", "train", str(written(tmp_path, out="two"))]
    done = subprocess.run(
        [sys.executable, *words, "--quiet"], env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert told.count("process 0 of 2\n") == told.count("process 1 of 2\n") == 1, told
    assert told.count("12 steps; checkpoint") == 1
    one, two = (torch.tensor(curve(tmp_path / out)) for out in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=0)
    # Another seed is another curve: the comparison can fail.
    trained(tmp_path, "training.seed=4", out="other")
    assert (torch.tensor(curve(tmp_path / "other")) - one).abs().max() > 1e-3
