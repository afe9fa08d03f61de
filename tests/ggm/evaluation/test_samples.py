import json

import numpy
import pytest

from ggm.data.text import char_tokenizer
from ggm.evaluation.samples import ReadConfig, Samples, read_samples


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lines_of_json(tmp_path):
    path = lines(
        tmp_path / "a.jsonl", {"text": "one\u2028line", "tokens": [1, 2]}, {"text": "", "tokens": []}
    )
    assert read_samples(path, ReadConfig()) == Samples(["one\u2028line", ""], [[1, 2], []])
    path = lines(tmp_path / "b.jsonl", {"body": "x", "text": "y"})
    assert read_samples(path, ReadConfig(column="body")).texts == ["x"]
    path = lines(tmp_path / "c.jsonl", {"tokens": [3]})
    assert read_samples(path, ReadConfig()) == Samples(None, [[3]])


@pytest.mark.parametrize(
    ("cut", "texts"),
    [
        ("paragraph", ["one\ntwo", "  three", "four"]),
        ("line", ["one", "two", "  three", "   ", "four"]),
        ("file", ["one\ntwo\n\n  three\n   \n\nfour"]),
    ],
)
def test_text_is_cut_as_asked(tmp_path, cut, texts):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n  three\n   \n\nfour\n")
    assert read_samples(path, ReadConfig(cut=cut)).texts == texts


def test_arrays_of_tokens(tmp_path):
    numpy.save(tmp_path / "a.npy", numpy.array([[0, 2], [1, 1]], dtype=numpy.int16))
    read = read_samples(tmp_path / "a.npy", ReadConfig())
    assert read.texts is None and read.token_lists() == [[0, 2], [1, 1]]
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(char_tokenizer(["abc"]).to_str())
    decoded = read_samples(tmp_path / "a.npy", ReadConfig(tokenizer=str(tokenizer)))
    assert decoded.texts == ["ac", "bb"] and decoded.token_lists() == [[0, 2], [1, 1]]
    numpy.save(tmp_path / "images.npy", numpy.arange(12, dtype=numpy.uint8).reshape(1, 2, 2, 3))
    assert read_samples(tmp_path / "images.npy", ReadConfig()).token_lists() == [list(range(12))]
    numpy.save(tmp_path / "big.npy", numpy.array([[4]]))
    with pytest.raises(ValueError, match="got token 4; allowed: 0 to 3"):
        read_samples(tmp_path / "big.npy", ReadConfig(tokenizer=str(tokenizer)))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "ends in '.csv'"),
        ("a.jsonl", b"", "got no samples"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": 1 2}\n', "a.jsonl, line 3, column 12: not JSON: [^:0-9]*$"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}\n", "line 1: JSON that cannot be read: "),
        ("a.jsonl", b"[" * 100_000, "line 1.*: (JSON that cannot be read|not JSON): "),
        ("a.jsonl", b"[]\n", "line 1: got list"),
        ("a.jsonl", b'{"body": "x"}\n', "column: got 'text'; allowed: body"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 1}\n', "sample 2, key 'text': got int"),
        ("a.jsonl", b'{"text": "x"}\n{}\n', "sample 2, key 'text': got no such key"),
        ("a.jsonl", b'{"tokens": [true]}\n', "integers of 0 and more"),
        ("a.jsonl", b'{"tokens": [-1]}\n', "integers of 0 and more"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl: not UTF-8: invalid start byte at byte 10"),
        ("a.txt", b"a\xff", "a.txt: not UTF-8: invalid start byte at byte 1"),
        ("a.txt", b"\n \n", "got no samples"),
        ("a.npy", b"", "not a .npy file"),
        ("a.npy", numpy.zeros((2, 2)), "got float64"),
        ("a.npy", numpy.zeros(2, dtype=int), r"got int64 \[2\]"),
        ("a.npy", -numpy.ones((2, 2), dtype=int), "negative"),
        ("a.npy", numpy.zeros((0, 2), dtype=int), "got no samples"),
    ],
)
def test_files_that_hold_no_samples_are_refused(tmp_path, name, content, words):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        numpy.save(tmp_path / name, content)
    with pytest.raises(ValueError, match=words):
        read_samples(tmp_path / name, ReadConfig())


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_samples(tmp_path / "a.npy", ReadConfig())
