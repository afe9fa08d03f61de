"""What the site and the way in need beside the pages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KATEX = ROOT / "docs" / "katex"


def test_the_fonts_of_formulas_are_there_and_their_licence():
    named = set(re.findall(r"url\((fonts/[^)]*\.woff2)\)", (KATEX / "katex.min.css").read_text()))
    assert len(named) > 10
    assert {f"fonts/{path.name}" for path in (KATEX / "fonts").iterdir()} == named
    assert (KATEX / "LICENSE").read_text().startswith("The MIT License")


def test_nothing_is_fetched_when_a_page_is_read():
    """The site's own scripts and styles name no other host."""
    config = (ROOT / "mkdocs.yml").read_text()
    for name in re.findall(r"(?:katex|stylesheets)/[\w.]+", config):
        assert (ROOT / "docs" / name).is_file()
    styles = (KATEX / "katex.min.css").read_text() + (ROOT / "docs" / "stylesheets" / "extra.css").read_text()
    assert "http" not in styles


def test_the_pages_are_built_without_torch():
    text = (ROOT / "pyproject.toml").read_text()
    docs = re.search(r"^docs = \[(.*?)\]$", text, flags=re.MULTILINE)[1]
    assert "mkdocs" in docs and "ruff" in docs and "ggm" not in docs


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.stem)
def test_templates_of_issues_can_be_read(path):
    yaml = pytest.importorskip("yaml")
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"] and form["body"]
    assert all(part["attributes"]["label"] for part in form["body"])


def test_the_picture_of_the_architecture_is_that_of_the_imports(tmp_path):
    script = ROOT / "docs" / "draw_architecture.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "now.svg")], check=True)
    drawn = (tmp_path / "now.svg").read_text()
    assert drawn == (ROOT / "docs" / "images" / "architecture.svg").read_text()
    ends = set(re.findall(r">(ggm[\w.]*)</text>", drawn))
    folders = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("ggm*/*/__init__.py")}
    assert {name.replace(".", "/") for name in ends} == folders | {"ggm", "ggm_kernels"}
