"""Several processes end after the same step, whichever of them is asked to, however far the next look is."""

import pytest
import torch.distributed as dist
from processes import TRAINS, finish, start, wait_for

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


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
@pytest.mark.parametrize("asked", [[0, 1], [1]])
def test_a_signal_saves_and_ends_all_processes(asked, sharding, tmp_path):
    out, log = tmp_path / "run", tmp_path / "run.log"
    (tmp_path / "run.yaml").write_text(f"out: {out}\nsharding: {sharding}\n{RUN}")
    processes = start(["train", str(tmp_path / "run.yaml"), "--quiet"], log, 2, told=True)
    # Before, a signal would end a process at once.
    wait_for(lambda: log.exists() and log.read_text().count(TRAINS) == 2, processes, log)
    for rank in asked:
        processes[rank].terminate()
    told = finish(processes, log)
    assert told.count("stopped by SIGTERM, --resume continues; ") == 1
    saved = Checkpoints(out / "checkpoints", 2).latest()
    assert saved is not None and int(saved.name.removeprefix("step-")) > 1
