from pathlib import Path

import pytest

from ggm.config import ConfigError, build, read_yaml
from ggm.data.sources import PydocData, TextData
from ggm.training.config import RunConfig, read_config

GOOD = """\
out: somewhere
data: {kind: pydoc, tokenizer: "bpe:300"}
model:
  chain: {length: 12, sweeps: 2}
  backbone: {width: 16, heads: 2, grid: [3, 4]}
  masked_counts: [1, 4]
training: {steps: 10, learning_rate: 1e-3, betas: [0.9, 0.95]}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_a_file_becomes_dataclasses(tmp_path):
    config = read_config(written(tmp_path, GOOD))
    assert config.data == PydocData(tokenizer="bpe:300")
    assert config.model.masked_counts == (1, 4)
    assert config.model.backbone.grid == (3, 4)
    assert config.training.learning_rate == 1e-3
    assert config.training.betas == (0.9, 0.95)


def test_overrides_win_and_may_make_parts(tmp_path):
    words = ["model.backbone.depth=2", "training.steps=3", "model.objective.noise_ratio=4", "precision=bf16"]
    config = read_config(written(tmp_path, GOOD), words)
    assert (config.model.backbone.depth, config.training.steps, config.precision) == (2, 3, "bf16")
    assert config.model.objective.noise_ratio == 4.0


def test_kind_chooses_among_dataclasses():
    config = build(RunConfig, {"out": "x", "data": {"kind": "text", "source": "a.txt"}})
    assert config.data == TextData(source="a.txt")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.backbone.widht=3", ["model.backbone.widht", "unknown key", "width"]),
        ("learning_rate=3", ["learning_rate", "unknown key", "training"]),
        ("training.learning_rate=fast", ["training.learning_rate", "'fast'", "a number"]),
        ("training.steps=2.5", ["training.steps", "2.5", "an integer"]),
        ("training.steps=true", ["training.steps", "True", "an integer"]),
        ("model.backbone.tied=1", ["model.backbone.tied", "1", "true or false"]),
        ("model.masked_counts=4", ["model.masked_counts", "4", "a list"]),
        ("model.masked_counts=[a]", ["model.masked_counts[0]", "'a'", "an integer"]),
        ("training.betas=[0.9]", ["training.betas", "a list of 2"]),
        ("training=3", ["training", "3", "keys with values"]),
        ("model.backbone.heads=3", ["model.backbone.width", "got 16", "multiples of heads"]),
        ("model.vocab_size=3", ["model.vocab_size", "the data decide"]),
        ("model.chain={}", ["model.chain.length", "missing"]),
        ("data.kind=movies", ["data.kind", "'movies'", "digits, images, pydoc, text, tokens"]),
        ("data.kind=[x]", ["data.kind", "['x']", "digits, images, pydoc, text, tokens"]),
        ("model.backbone.kind={a: 1}", ["model.backbone.kind", "{'a': 1}", "hollow, masked"]),
        ("data={kind: text, source: a.txt, held_out: 0}", ["data.held_out", "got 0", "1 or more"]),
        ("data.levels=3", ["data.levels", "unknown key"]),
        ("precision=fp8", ["precision", "'fp8'", "fp32, bf16"]),
        ("accumulation=0", ["accumulation", "got 0", "1 or more"]),
        ("out=", ["out", "nothing", "text"]),
        ("out.folder=3", ["out.folder=3", "out has no keys"]),
        ("out", ["overrides: got 'out'", "KEY=VALUE"]),
        ("out=[", ["overrides: out=[", "not YAML"]),
    ],
)
def test_mistakes_name_the_key_and_what_is_allowed(override, words, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_config(written(tmp_path, GOOD), [override])
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "just words"])
def test_files_that_are_no_mapping_are_refused(text, tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        read_yaml(written(tmp_path, text))
