"""Folders and patterns of text files, and sequences held out at random."""

import pytest
import torch
from small_runs import trained

from ggm.config import ConfigError
from ggm.data import text
from ggm.data.held_out import split
from ggm.data.sources import PydocData, TextData, load_data
from ggm.data.text_files import text_files
from ggm.training.config import RUN_CONFIG, read_config, read_of_run, read_written

NAMES = ["a.txt", "b.txt", "more/c.txt", "more/deep/d.txt"]


@pytest.fixture
def folder(tmp_path):
    """Texts at several depths, and files that are none of the kind."""
    (tmp_path / "texts" / "more" / "deep").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "texts" / name).write_text(f"text of {name}, " * 30)
    (tmp_path / "texts" / "notes.md").write_text("no text of ours")
    (tmp_path / "texts" / "more" / "empty.txt").write_text("")
    return tmp_path / "texts"


def documents(source, **options) -> list[str]:
    return list(text.Texts(text.open_documents(str(source), **options), "text", str(source)))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", NAMES),
        ("*.txt", NAMES[:2]),
        ("**/*.txt", NAMES),
        ("more/*.txt", NAMES[2:3]),
        ("[b-z].txt", NAMES[1:2]),
    ],
)
def test_every_file_is_a_document_in_the_order_of_names(folder, pattern, names, streaming):
    found = documents(folder / pattern if pattern else folder, streaming=streaming)
    assert found == [f"text of {name}, " * 30 for name in names]


def test_marks_of_some_files_are_no_characters(folder):
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbfmarked")
    assert documents(folder)[1] == "marked"


def test_names_with_the_signs_of_patterns_are_read(tmp_path):
    """Of two files, [a] stands for one letter of a name, and for itself."""
    path = tmp_path / "letters [ab].txt"
    path.write_text("within brackets")
    (tmp_path / "letters a.txt").write_text("fits the pattern")
    assert documents(path) == ["within brackets"]


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("none", FileNotFoundError, "none: no .txt file in this folder"),
        ("none/*.txt", FileNotFoundError, "no file fits this pattern"),
        ("mixed/*", ValueError, r"got files of .json, .txt; allowed: files of one kind"),
        ("mixed/x.doc", FileNotFoundError, r"ends in '.doc'; allowed: .txt, .jsonl"),
        ("empty/*.txt", ValueError, "got empty files; allowed: documents"),
        ("missing.txt", FileNotFoundError, "no such file of .txt"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, error, told):
    for part in ("none", "mixed", "empty", "docs"):
        (tmp_path / part).mkdir()
    (tmp_path / "mixed" / "a.txt").write_text("a")
    (tmp_path / "mixed" / "a.json").write_text("{}")
    (tmp_path / "empty" / "a.txt").write_text("")
    if name.endswith(".doc"):
        (tmp_path / name).write_text("a")
    with pytest.raises(error, match=told):
        text_files(str(tmp_path / name))


def test_names_of_the_hub_are_left_to_it():
    assert text_files("Skylion007/openwebtext") == []


@pytest.mark.parametrize(("count", "of"), [(1, 2), (7, 50), (49, 50)])
@pytest.mark.parametrize("by", ["random", "first"])
def test_every_sequence_is_on_one_side(count, of, by):
    rows = torch.arange(of)[:, None] * torch.ones(3, dtype=torch.int64)
    held_out, train = split(rows, count, by)
    assert held_out.shape == (count, 3) and len(train) == of - count
    others = train[torch.arange(len(train))]
    assert (others[1:, 0] > others[:-1, 0]).all()
    assert sorted(torch.cat([held_out, others])[:, 0].tolist()) == list(range(of))
    assert torch.equal(train[torch.tensor([len(train) - 1, 0])], others[[-1, 0]])
    assert (held_out[:, 0].tolist() == list(range(count))) or by == "random"


def test_random_sequences_come_from_all_over_and_are_the_same_again():
    rows = torch.arange(10_000)[:, None]
    first, again = (split(rows, 400)[0][:, 0] for _ in range(2))
    assert torch.equal(first, again)
    # Of 400 uniform draws 100 +- 9 fall into each quarter.
    quarters = torch.bincount(first * 4 // 10_000, minlength=4)
    assert ((quarters > 60) & (quarters < 140)).all()
    assert split(rows, 400, "first")[0].max() == 399  # what the line above would not let pass


def test_text_is_held_out_from_the_whole_folder(folder):
    data = load_data(TextData(str(folder), held_out=20), 16)
    said = text.decode(data.tokenizer, data.held_out.flatten().tolist())
    assert all(f"{letter}.txt" in said for letter in "abcd")
    data = load_data(TextData(str(folder), held_out=20, held_out_by="first"), 16)
    assert "d.txt" not in text.decode(data.tokenizer, data.held_out.flatten().tolist())


def without_data_file(text: str) -> str:
    """The file of a run from before it told what the file of its data was: that stands at its end."""
    before, key, rest = text.partition("data_file:")
    assert key and not any(line[0].isalpha() for line in rest.splitlines()[1:])
    return before


def test_a_run_from_before_the_choice_keeps_its_sequences(tmp_path):
    out = trained(tmp_path, "data={kind: pydoc}", "data.held_out=8", "training.steps=1").checkpoint.parents[1]
    config = out / RUN_CONFIG
    assert read_written(config).data == PydocData(held_out=8)
    older = "".join(line for line in config.read_text().splitlines(True) if "held_out_by" not in line)
    assert older != config.read_text()
    config.write_text(older)
    assert read_written(config).data == PydocData(held_out=8, held_out_by="first")
    assert read_config(config).data == PydocData(held_out=8)
    assert read_of_run(config).data == PydocData(held_out=8, held_out_by="first")
    elsewhere = tmp_path / "elsewhere" / RUN_CONFIG
    elsewhere.parent.mkdir()
    elsewhere.write_text(older)  # known by data_file, where there is one
    assert read_of_run(elsewhere).data == PydocData(held_out=8, held_out_by="first")
    elsewhere.write_text(without_data_file(older))
    assert read_of_run(elsewhere).data == PydocData(held_out=8)
    (elsewhere.parent / "metrics.jsonl").touch()
    assert read_of_run(elsewhere).data == PydocData(held_out=8, held_out_by="first")
    settings = ["data={kind: pydoc}", "data.held_out=8", "training.steps=2"]
    with pytest.raises(ConfigError, match=r"data\.held_out_by: got 'random'; allowed: 'first'"):
        trained(tmp_path, *settings, resume=True)
    assert trained(tmp_path, *settings, "data.held_out_by=first", resume=True).steps == 2
