import json
from itertools import islice
from types import SimpleNamespace

import numpy
import pytest
import torch

from ggm.data import text
from ggm.data.batches import batches, index_batches
from ggm.data.sources import DigitsData, PydocData, TextData, TokenData, load_data

DOCUMENTS = [f"Document {i}: naïve tokens,\n  {'word ' * (i % 7)}end." for i in range(60)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same documents in every format."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "a.txt").write_text("".join(DOCUMENTS))
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": d, "n": 1}) + "\n" for d in DOCUMENTS))
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": DOCUMENTS}), folder / "a.parquet")
    return folder


@pytest.mark.parametrize("name", ["char", "bpe:300"])
def test_tokenizers_give_back_what_they_took(name):
    tokenizer = text.make_tokenizer(name, DOCUMENTS)
    for document in DOCUMENTS:
        assert text.decode(tokenizer, text.encode(tokenizer, document)) == document
    end = text.end_token(tokenizer, text.END)
    assert text.decode(tokenizer, [*text.encode(tokenizer, "word"), end]) == "word" + text.END
    if name == "char":
        assert tokenizer.get_vocab_size() == len(set("".join(DOCUMENTS))) + 1
        assert len(text.encode(tokenizer, DOCUMENTS[3])) == len(DOCUMENTS[3])
    else:
        assert tokenizer.get_vocab_size() == 300
        assert len(text.encode(tokenizer, DOCUMENTS[3])) < len(DOCUMENTS[3])
        # Every process trains its own where there is no file to share: they must not differ.
        assert text.make_tokenizer(name, DOCUMENTS).to_str() == tokenizer.to_str()


def test_tokenizers_are_read_from_files_and_mistakes_are_told(tmp_path):
    tokenizer = text.make_tokenizer("char", DOCUMENTS)
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str())
    assert text.make_tokenizer(str(path), []).to_str() == tokenizer.to_str()
    with pytest.raises(ValueError, match=r"not in the vocabulary: '@' 'b' '€'"):
        text.encode(tokenizer, "a@b€")
    with pytest.raises(ValueError, match=r"data\.end: got '<end>'"):
        text.end_token(tokenizer, "<end>")
    with pytest.raises(ValueError, match="above 256"):
        text.make_tokenizer("bpe:100", DOCUMENTS)
    with pytest.raises(FileNotFoundError, match="is no file, and the Hub does not give it"):
        text.make_tokenizer("no/such-tokenizer", DOCUMENTS)
    # The folder that a tokenizer is saved into serves as well as the file.
    assert text.make_tokenizer(str(tmp_path), []).to_str() == tokenizer.to_str()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no tokenizer\.json in the folder '.*empty'"):
        text.make_tokenizer(str(tmp_path / "empty"), DOCUMENTS)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer"):
        text.read_tokenizer(path)


def test_packing_loses_nothing_but_the_last_tokens():
    tokenizer = text.make_tokenizer("char", DOCUMENTS)
    end = text.end_token(tokenizer, text.END)
    rows = list(text.pack(tokenizer, DOCUMENTS, end, 32))
    assert {len(row) for row in rows} == {32}
    whole = text.decode(tokenizer, sum(rows, []))
    assert text.END.join([*DOCUMENTS, ""]).startswith(whole)
    assert sum(len(d) + 1 for d in DOCUMENTS) - len(sum(rows, [])) < 32


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_are_packed_alike_on_disk_and_as_streams(files, suffix):
    config = {
        "source": str(files / f"a.{suffix}"),
        "tokenizer": "bpe:300",
        "held_out": 3,
        "held_out_by": "first",
    }
    data = load_data(TextData(**config), 16)
    tokenizer = text.make_tokenizer("bpe:300", DOCUMENTS)
    expected = torch.tensor(list(text.pack(tokenizer, DOCUMENTS, text.end_token(tokenizer, text.END), 16)))
    assert data.tokenizer.to_str() == tokenizer.to_str() and data.vocab_size == 300
    assert torch.equal(data.held_out, expected[:3])
    assert torch.equal(data.train[torch.arange(len(data.train))], expected[3:])
    assert torch.equal(data.train[torch.tensor([4, 0])], expected[[7, 3]])
    stream = load_data(TextData(**config, streaming=True), 16)
    assert torch.equal(stream.held_out, data.held_out)
    rounds = torch.stack(list(islice(stream.train, 2 * len(expected) - 6)))
    assert torch.equal(rounds, expected[3:].repeat(2, 1))


def test_a_text_file_is_one_document(files):
    data = load_data(TextData(str(files / "a.txt"), held_out_by="first"), 16)
    ids = torch.arange(len(data.train))
    tokens = torch.cat([data.held_out, data.train[ids]]).flatten().tolist()
    assert "".join(DOCUMENTS).startswith(text.decode(data.tokenizer, tokens[:-16]))


def test_the_text_that_every_python_has():
    data = load_data(PydocData(held_out=10), 64)
    assert len(data.train) > 4000 and data.held_out.shape == (10, 64)
    rows = data.train[torch.arange(50)].flatten().tolist()
    assert " the " in text.decode(data.tokenizer, rows)


def test_arrays_of_tokens(tmp_path):
    rows = numpy.arange(60, dtype=numpy.uint16).reshape(10, 6)
    numpy.save(tmp_path / "tokens.npy", rows)
    config = TokenData(str(tmp_path / "tokens.npy"), vocab_size=60, held_out=2, held_out_by="first")
    data = load_data(config, 6)
    assert data.held_out.tolist() == rows[:2].tolist()
    assert data.train[torch.tensor([7, 0])].tolist() == rows[[9, 2]].tolist()
    with pytest.raises(ValueError, match=r"uint16 \[10, 6\]; allowed: integers \[N, 5\]"):
        load_data(config, 5)
    with pytest.raises(ValueError, match="tokens outside; allowed: 0 to 58"):
        load_data(TokenData(config.source, 59, held_out=2), 6).train[torch.tensor([7])]
    with pytest.raises(FileNotFoundError):
        load_data(TokenData("nowhere.npy", 60), 6)


def test_data_that_do_not_fit_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match=r"model\.chain\.length: got 10"):
        load_data(DigitsData(), 10)
    with pytest.raises(ValueError, match=r"data\.column: got 'body'; allowed: text, n"):
        load_data(TextData(str(files / "a.jsonl"), column="body"), 16)
    with pytest.raises(ValueError, match=r"data\.held_out: got 64 of 1 sequences"):
        load_data(TextData(str(files / "a.txt")), 2000)
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt"):
        load_data(TextData(str(tmp_path / "nothing.txt")), 16)
    with pytest.raises(OSError):
        load_data(TextData("no/such-data-set", tokenizer="bpe:300"), 16)
    with pytest.raises(ValueError, match="for a stream"):
        TextData("a", streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("made_from", ["data", "file"])
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("null.jsonl", b'{"text": "a"}\n{"text": null}\n', "got None in column 'text'; allowed: text"),
        ("number.jsonl", b'{"text": 1}\n', "got 1 in column 'text'; allowed: text"),
        ("mixed.jsonl", b'{"text": "a"}\n{"text": [2]}\n', "got [2] in column 'text'; allowed: text"),
        ("empty.jsonl", b"", "got an empty file; allowed: documents"),
        ("empty.txt", b"", "got an empty file; allowed: documents"),
        ("bad.jsonl", b'{"text": "a"}\n{bad\n', "JSON parse error"),
        ("bad.parquet", b"hello", "Parquet file size is 5 bytes"),
        ("latin.txt", b"\xff\xfe", "'utf-8' codec can't decode"),
    ],
)
def test_damaged_documents_are_told_with_their_file(name, content, told, made_from, streaming, tmp_path):
    (tmp_path / name).write_bytes(content)
    tokenizer = "bpe:300"
    if made_from == "file":
        tokenizer = str(tmp_path / "tokenizer.json")
        text.make_tokenizer("bpe:300", DOCUMENTS).save(tokenizer)
    with pytest.raises(ValueError) as caught:
        load_data(TextData(str(tmp_path / name), tokenizer=tokenizer, streaming=streaming, held_out=4), 1)
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stream_is_read_once_to_find_that_it_is_too_short(files, monkeypatch):
    rounds = []
    monkeypatch.setattr(text.Texts, "__iter__", lambda self: rounds.append(1) or iter(DOCUMENTS))
    count = len(list(text.pack(text.make_tokenizer("bpe:300", DOCUMENTS), DOCUMENTS, 0, 16)))
    rounds.clear()
    config = {"source": str(files / "a.jsonl"), "tokenizer": "bpe:300", "streaming": True}
    for held_out in (10_000, count):
        with pytest.raises(
            ValueError, match=rf"data\.held_out: got {held_out} of {count} sequences; allowed: "
        ):
            load_data(TextData(**config, held_out=held_out), 16)
    assert len(rounds) == 2 * 2  # for the tokenizer, and for the sequences
    assert len(load_data(TextData(**config, held_out=count - 1), 16).held_out) == count - 1


@pytest.mark.parametrize("load", ["data set", "tokenizer"])
def test_retries_of_the_hub_are_not_told(load, monkeypatch, caplog):
    import datasets
    import tokenizers
    from huggingface_hub.utils import logging

    told = logging.get_logger("huggingface_hub.utils._http")

    def fail(*_, **__):
        told.warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(tokenizers, "Tokenizer", SimpleNamespace(from_pretrained=fail))
    with pytest.raises(FileNotFoundError, match="the Hub does not give it: no network"):
        text.open_documents("some/name") if load == "data set" else text.make_tokenizer("some/name", [])
    told.warning("as before")
    assert caplog.messages == ["as before"]


def test_batches_can_begin_anywhere():
    whole = list(islice(index_batches(10, 3, seed=1), 8))
    for start in range(8):
        rest = list(islice(index_batches(10, 3, seed=1, start=start), 8 - start))
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[start:], strict=True))
    # Epochs of three batches: no sequence twice in one, another order in the next.
    assert torch.cat(whole[:3]).unique().numel() == 9
    assert not torch.equal(torch.cat(whole[:3]), torch.cat(whole[3:6]))


@pytest.mark.parametrize("streaming", [False, True])
def test_processes_share_out_the_same_batches(files, streaming):
    config = TextData(str(files / "a.jsonl"), tokenizer="bpe:300", streaming=streaming, held_out=4)
    tokens = load_data(config, 16).train
    one = list(islice(batches(tokens, 6, seed=0, start=2), 3))
    parts = [list(islice(batches(tokens, 6, seed=0, start=2, rank=r, world=3), 3)) for r in range(3)]
    for whole, *split in zip(one, *parts, strict=True):
        assert torch.equal(torch.cat([part.sample_ids for part in split]), whole.sample_ids)
        assert torch.equal(torch.cat([part.tokens for part in split]), whole.tokens)
