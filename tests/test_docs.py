"""What the pages show runs as it stands there, and the files that they name exist."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from clients import library_or_skip

from benchmarks import report, results_file
from ggm.data.text import bpe_tokenizer

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "```python" in path.read_text())
# What would take minutes, and what stands in its place here.
SHORTER = {"steps = 2000": "steps = 30", "seconds = 120": "seconds = 1"}


# No extra of ours brings it: its block has a test of its own, which is skipped where it is missing.
BESIDE = "import lightning"


def source_of(page: Path, shorter: dict[str, str] | None = None, left_out: str | None = BESIDE) -> str:
    """The page with everything but its Python blocks blanked out: errors tell the lines of the page.

    A block that holds the line `left_out` is blanked out, too.
    """
    lines, kept, begun = page.read_text().splitlines(), [], None
    for number, line in enumerate(lines):
        kept.append("")
        if line == "```python":
            begun = number + 1
        elif line == "```" and begun is not None:
            block = lines[begun:number]
            if left_out not in block:
                kept[begun:number] = block
            begun = None
    source = "\n".join(kept)
    for long, short in (shorter or {}).items():
        source = source.replace(long, short)
    return source


def write_language_model(folder: Path) -> None:
    """What a page calls `lm`: any causal language model with its tokenizer."""
    transformers = pytest.importorskip("transformers")
    tokenizer = bpe_tokenizer(["The statement of a loop."], 300)
    config = transformers.GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_run(page, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)  # what they write
    monkeypatch.delenv("GGM_KERNELS_BACKEND", raising=False)
    # Traced as anywhere, but no compiler is run.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    if "import diffusers" in page.read_text():
        library_or_skip("diffusers")
        library_or_skip("transformers")
    if '"lm"' in page.read_text():
        write_language_model(tmp_path / "lm")
    exec(compile(source_of(page, SHORTER), str(page), "exec"), {"__name__": page.stem})


def test_the_block_of_lightning_runs(monkeypatch, tmp_path):
    for library in ("lightning", "diffusers", "transformers"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "coming-from.md"
    exec(compile(source_of(page, left_out=None), str(page), "exec"), {"__name__": page.stem})


def test_what_is_shortened_or_left_out_is_there():
    text = "".join(page.read_text() for page in PAGES)
    assert all(text.count(long) == 1 for long in [*SHORTER, BESIDE])


def test_the_files_named_exist():
    """On the page that walks through all rooms: every `path/with/slash` in backquotes."""
    text = (ROOT / "docs" / "adding_an_op.md").read_text()
    named = set(re.findall(r"`([\w.]+(?:/[\w.]+)+/?)`", text))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def copies_of_the_checkout(text: str) -> list[str]:
    """Every `pip install` of the folder itself that is no editable one."""
    found = re.finditer(r"pip install((?: -\S+)*) (['\"]?)\.(?:\[[\w,]+\])?\2(?=[\s`]|$)", text)
    return [match[0] for match in found if "-e" not in match[1].split()]


def test_a_checkout_is_installed_where_it_stands():
    """A copy would be hidden by the checkout, which then has no compiled core, from whoever starts Python there."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    pages += (ROOT / "examples").glob("*.ipynb")
    texts = {path: path.read_text() for path in pages}
    assert sum(text.count("pip install -e ") for text in texts.values()) > 20
    assert [
        (path.name, found) for path, text in texts.items() if (found := copies_of_the_checkout(text))
    ] == []
    # What it would find, and what it would not.
    for command in ("pip install .", "pip install '.[demo,train]'", "pip install -v ."):
        assert copies_of_the_checkout(f"In a checkout:\n\n    {command}\n") == [command]
        editable = command.replace("install", "install -e")
        assert copies_of_the_checkout(f"`{editable}`, then `pip install ninja`") == []


def test_figures_of_the_first_page_are_those_of_the_performance_page():
    """After a new run: python -m benchmarks.report .. --index docs/index.md."""
    source = re.search(r"kept in `(.*?)`", (ROOT / "docs" / "performance.md").read_text())[1]
    results = results_file.parse(results_file.read(ROOT / source))
    picture = f"images/performance-{results.slug}-ratios.svg"
    assert report.block(results, picture, report.HIGHLIGHTS) in (ROOT / "docs" / "index.md").read_text()
    assert (ROOT / "docs" / picture).exists()
