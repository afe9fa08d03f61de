"""Several processes end after the same step, whichever of them is asked to, however far the next look is."""

import time
from pathlib import Path

import pytest
import torch.distributed as dist
from processes import finish, start

from ggm.training.checkpoints import Checkpoints

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)

RUN = """\
data: {kind: digits, held_out: 16}
model:
  chain: {length: 64, sweeps: 2}
  backbone: {width: 16, depth: 1, heads: 2}
  objective: {noise_ratio: 10.0}
  masked_counts: [8]
training: {steps: 1000000, batch_size: 8}
checkpoint_every: 1000000
log_every: 1000000
tracker: none
"""


def wait_for(path: Path, processes, log: Path) -> None:
    for _ in range(6000):
        if path.exists():
            return
        assert all(process.is_alive() for process in processes), log.read_text()
        time.sleep(0.01)
    raise AssertionError("nothing happened for a minute")


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
@pytest.mark.parametrize("asked", [[0, 1], [1]])
def test_a_signal_saves_and_ends_all_processes(asked, sharding, tmp_path):
    out, log = tmp_path / "run", tmp_path / "run.log"
    (tmp_path / "run.yaml").write_text(f"out: {out}\nsharding: {sharding}\n{RUN}")
    processes = start(["train", str(tmp_path / "run.yaml"), "--quiet"], log, 2)
    wait_for(out / "config.yaml", processes, log)
    time.sleep(0.5)
    for rank in asked:
        processes[rank].terminate()
    told = finish(processes, log, seconds=30)
    assert told.count("stopped by SIGTERM, --resume continues; ") == 1
    saved = Checkpoints(out / "checkpoints", 2).latest()
    assert saved is not None and int(saved.name.removeprefix("step-")) > 1
