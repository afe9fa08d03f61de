"""Files of text as editors and other programs leave them: with a byte order mark, tokenizers with settings."""

import codecs
import json
from pathlib import Path

import pytest
import torch
from small_runs import trained, written

from ggm import GGM
from ggm.commands.cli import main
from ggm.config import ConfigError
from ggm.data import text
from ggm.data.sources import TextData, load_data
from ggm.evaluation.samples import ReadConfig, read_samples
from ggm.training.config import read_config
from ggm.training.metrics import read_metrics

MARK = "\ufeff"


def marked(path: Path, content: str) -> Path:
    path.write_bytes(codecs.BOM_UTF8 + content.encode())
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json"])
def test_a_mark_before_documents_is_no_character_of_theirs(suffix, streaming, tmp_path):
    documents = ["some words, " * 40, f"and {MARK} within, " * 20]
    lines = [json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents]
    path = marked(tmp_path / f"a{suffix}", documents[1] if suffix == ".txt" else "".join(lines))
    found = text.Texts(text.open_documents(str(path), streaming=streaming), "text", str(path))
    assert list(found) == (documents[1:] if suffix == ".txt" else documents)


def test_a_mark_is_not_learnt(tmp_path):
    source = marked(tmp_path / "a.txt", "some words, " * 40)
    data = load_data(TextData(str(source), held_out=1), 16)
    assert MARK not in data.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "first\n\nsecond\n"), ("a.jsonl", '{"text": "first"}\n{"text": "second"}\n')],
)
def test_a_mark_before_samples_is_none_of_theirs(name, content, tmp_path):
    assert read_samples(marked(tmp_path / name, content), ReadConfig()).texts == ["first", "second"]


@pytest.mark.usefixtures("fresh_accelerate")
def test_marks_in_files_of_a_run_are_read_by_all_commands(tmp_path, capsys):
    settings = ["data={kind: pydoc}", "data.held_out=8", "training.steps=1"]
    checkpoint = trained(tmp_path, *settings).checkpoint
    (checkpoint / "digests.json").unlink(missing_ok=True)
    out = tmp_path / "run"
    whole = GGM.from_pretrained(checkpoint)
    files = [checkpoint / "config.json", checkpoint / "tokenizer.json", out / "tokenizer.json"]
    for path in [*files, out / "config.yaml", out / "metrics.jsonl", written(tmp_path)]:
        marked(path, path.read_text())
    again = GGM.from_pretrained(checkpoint)
    assert again.config == whole.config and torch.equal(again.backbone.bias, whole.backbone.bias)
    assert main(["sample", str(out)]) == 0
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [1]
    assert read_config(tmp_path / "run.yaml", settings).out == read_config(out / "config.yaml").out
    assert trained(tmp_path, *settings[:2], "training.steps=2", resume=True).steps == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_settings_of_a_tokenizer_do_not_cut_or_fill_up_documents(streaming, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": f"words {i} " * 30}) + "\n" for i in range(20)))
    plain = text.char_tokenizer([source.read_text()])
    kept = tmp_path / "plain.json"
    kept.write_text(plain.to_str())
    plain.enable_truncation(16)
    plain.enable_padding(length=40)
    changed = tmp_path / "changed.json"
    changed.write_text(plain.to_str())
    assert json.loads(changed.read_text())["truncation"] and json.loads(changed.read_text())["padding"]
    length = 16
    rows = []
    for path in (kept, changed):
        config = TextData(str(source), tokenizer=str(path), streaming=streaming, held_out=4)
        rows.append(load_data(config, length).held_out)
        tokenizer = text.read_tokenizer(path)
        assert len(text.encode(tokenizer, "words" * 30)) == 150 and len(text.encode(tokenizer, "words")) == 5
    assert torch.equal(*rows)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("training:\n  batch_size: 4\n  steps: 5\n  batch_size: 128\n", "line 4: batch_size: got it twice"),
        ("out: a\nout: b\n", "line 2: out: got it twice"),
        ("data: {kind: digits, levels: 4, kind: pydoc}\n", "line 1: kind: got it twice"),
        ("model:\n- {a: 1,\n   a: 2}\n", "line 3: a: got it twice"),
    ],
)
def test_a_key_that_stands_twice_is_an_error(content, told, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value) == f"{path}: {told}; allowed: once"


def test_a_key_that_stands_twice_in_a_word_is_an_error(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^overrides: training=\{steps: 1, steps: 2\}: line 1: steps: got it twice"
    ):
        read_config(written(tmp_path), ["training={steps: 1, steps: 2}"])


def test_keys_that_are_merged_may_be_replaced(tmp_path):
    path = written(tmp_path)
    path.write_text(
        path.read_text().replace("{steps: 12,", "{<<: {steps: 12, learning_rate: 0.5}, learning_rate: 0.25,")
    )
    training = read_config(path).training
    assert (training.steps, training.learning_rate) == (12, 0.25)
