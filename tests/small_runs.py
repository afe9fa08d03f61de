"""A run of `ggm train` that takes a moment."""

from pathlib import Path

from ggm.training.config import read_config
from ggm.training.metrics import read_metrics
from ggm.training.run import run

RUN = """\
data: {kind: digits}
model:
  chain: {length: 64, sweeps: 2}
  backbone: {width: 16, depth: 1, heads: 2}
  objective: {noise_ratio: 10.0}
  masked_counts: [8, 4]
training: {steps: 12, batch_size: 8, seed: 3}
checkpoint_every: 5
log_every: 2
samples: 0
tracker: none
"""


def written(folder: Path, *, out: str = "run", **lines: str) -> Path:
    path = folder / f"{out}.yaml"
    extra = "".join(f"{key}: {value}\n" for key, value in lines.items())
    path.write_text(f"out: {folder / out}\n{RUN}{extra}")
    return path


def trained(folder: Path, *overrides: str, out: str = "run", **options):
    return run(read_config(written(folder, out=out), overrides), progress=False, **options)


def curve(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(out / "metrics.jsonl")]
