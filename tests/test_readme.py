"""What the README shows runs as it stands there; what it names is there."""

import re
from pathlib import Path

import pytest
import torch

import ggm_kernels

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
VOCAB_SIZE, MASK_ID = 11, 10


def samplers() -> list[str]:
    section = README.split("## In a sampler of yours")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def test_the_calls_are_what_the_lines_below_them_say():
    section = README.split("## What it does")[1].split("\n## ")[0]
    noise, loss, cross_entropy, step = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    batch, length, vocab_size, rows = 400, 20, 5, 64
    shared = {"torch": torch, "ggm_kernels": ggm_kernels, "softplus": torch.nn.functional.softplus, "step": 0}

    tokens = torch.randint(vocab_size, (batch, length))
    names = {**shared, "B": batch, "L": length, "tokens": tokens, "vocab_size": vocab_size}
    names["keep_prob"] = torch.full((batch,), 0.7)
    ours, theirs = ({**names} for _ in range(2))
    for part, results in zip(noise.split("# in law:\n"), (ours, theirs), strict=True):
        exec(part, results)
        kept = (results["noisy"] == tokens).float().mean()
        assert abs(kept - (0.7 + 0.3 / vocab_size)) < 0.03
        assert abs(results["is_signal"].float().mean() - 0.7) < 0.03

    names = {**shared, "hidden": torch.randn(rows, 8), "weight": torch.randn(vocab_size, 8)}
    names["candidates"] = torch.randint(vocab_size, (rows,))
    names["signal_weight"] = torch.rand(rows)
    ours, theirs = ({**names} for _ in range(2))
    for part, results in zip(loss.split("# equals:\n"), (ours, theirs), strict=True):
        exec(part, results)
    torch.testing.assert_close(ours["loss"], theirs["loss"])

    functional = torch.nn.functional
    names |= {"cross_entropy": functional.cross_entropy, "linear": functional.linear}
    names |= {"targets": names["candidates"], "row_weight": names["signal_weight"]}
    ours, theirs = ({**names} for _ in range(2))
    for part, results in zip(cross_entropy.split("# equals:\n"), (ours, theirs), strict=True):
        exec(part, results)
    torch.testing.assert_close(ours["loss"], theirs["loss"])

    positions = torch.tensor([3, 11])
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0]).expand(20_000, 2, 5)
    law = (logits[0, 0] / 0.9).softmax(0)
    for part in step.replace(", top_p=0.9", "").split("# in law, without the filters:\n"):
        tokens = torch.zeros(20_000, length, dtype=torch.int64)
        exec(part, {**shared, "tokens": tokens, "logits": logits, "positions": positions})
        shares = torch.bincount(tokens[:, positions].flatten(), minlength=vocab_size) / 40_000
        torch.testing.assert_close(shares, law, atol=0.015, rtol=0)


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


def test_the_pages_and_parts_it_leads_to_are_there():
    addresses = re.findall(r"\]\(([^)]*)\)", README)
    assert len(addresses) > 15
    headings = {
        re.sub(r"[^a-z -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    missing = [
        address
        for address in addresses
        if not address.startswith("http")
        and not (address[1:] in headings if address.startswith("#") else (ROOT / address).exists())
    ]
    assert missing == []


def test_the_picture_the_install_and_the_sampler_come_first():
    """Before anyone scrolls: what it is, what it does, how to get it."""
    first = README.split("## For whom")[0]
    places = [
        first.index(words) for words in ("docs/images/chain.png", "pip install -e .", "glauber_step(", "MB |")
    ]
    assert places == sorted(places)
    assert len(first.splitlines()) < 60


def test_the_citation_can_be_read_by_machines():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == ggm_kernels.__version__
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["title"] in README
    assert all(f"{author['family-names']}, {author['given-names']}" in README for author in paper["authors"])
