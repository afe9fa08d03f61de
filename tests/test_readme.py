"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import torch

import ggm_kernels

README = (Path(__file__).parent.parent / "README.md").read_text()
VOCAB_SIZE, MASK_ID = 11, 10


def samplers() -> list[str]:
    section = README.split("### In a sampler of yours")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def model(tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, L, V] that count each sequence's tokens, and like the mask best."""
    counts = torch.nn.functional.one_hot(tokens, VOCAB_SIZE).float().sum(1)
    return counts[:, None].expand(-1, tokens.shape[1], -1).clone()


def test_the_sampler_runs_before_and_after():
    before, after = samplers()
    assert len(before.splitlines()) + len(after.splitlines()) < 25
    for source in (before, after):
        names = {"torch": torch, "ggm_kernels": ggm_kernels}
        exec(source, names)
        torch.manual_seed(0)
        tokens = torch.full((300, 8), MASK_ID)
        assert names["sample"](model, tokens, MASK_ID, 3) is tokens
        assert tokens.max() < MASK_ID
        # Every token but the mask is drawn, each about as often.
        assert torch.bincount(tokens.flatten()).float().std() < 60
