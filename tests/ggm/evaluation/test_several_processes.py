"""Two processes draw and score what one does: the same files, to the byte."""

import json
from pathlib import Path

import numpy
import pytest
import torch
import torch.distributed as dist
from processes import finish, start

from ggm import GGM, ChainConfig, GGMConfig, HollowConfig
from ggm.commands.cli import main
from ggm.data.digits import SIDE
from ggm.data.images.tokenizers import GreyLevels
from ggm.data.text import char_tokenizer
from ggm.processes import Processes
from ggm.training.checkpoints import TOKENIZER

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of text and of digits, their weights random."""
    folder = tmp_path_factory.mktemp("several")
    tokenizer = char_tokenizer(["the cat sat on a mat. "])
    sizes = {"text": (tokenizer.get_vocab_size(), 20), "digits": (4, SIDE * SIDE)}
    for name, (vocab_size, length) in sizes.items():
        torch.manual_seed(0)
        backbone = HollowConfig(width=8, depth=1, mixing=1, heads=1)
        model = GGM(GGMConfig(vocab_size, ChainConfig(length, sweeps=2), backbone))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(folder / name)
    (folder / "text" / TOKENIZER).write_text(tokenizer.to_str())
    GreyLevels(SIDE, 4).save(folder / "digits")
    return {name: folder / name for name in sizes}


def drawn(words: list, processes: int, log: Path) -> str:
    log.unlink(missing_ok=True)
    return finish(start([str(word) for word in words], log, processes), log)


def lasting(record: Path) -> dict:
    """What a record tells of the samples, but for the time that they took and who drew them."""
    values = json.loads(record.read_text())
    for key in ("seconds", "site_updates_per_second", "processes"):
        del values[key]
    return values


@pytest.mark.parametrize(
    "words", ["--event-driven --keep-or-replace", "--sites-per-step 4 --redenoise 1 --temperature 2:0.5"]
)
def test_samples_are_those_of_one_process(words, checkpoints, tmp_path):
    # Three batches, the last one short: one process has two of them.
    command = ["sample", checkpoints["text"], "--count", 7, "--batch", 3, "--seed", 5, *words.split()]
    names = {1: "one", 2: "two"}
    for count, name in names.items():
        told = drawn([*command, "--out", tmp_path / f"{name}.jsonl"], count, tmp_path / "log")
        assert told == ""
    one, two = ((tmp_path / f"{name}.jsonl").read_bytes() for name in names.values())
    assert one == two and one.count(b"\n") == 7
    records = [tmp_path / f"{name}.jsonl.meta.json" for name in names.values()]
    assert lasting(records[0]) == lasting(records[1])
    assert [json.loads(record.read_text())["processes"] for record in records] == [1, 2]
    printed = [drawn(command, count, tmp_path / "log") for count in names]
    assert printed[0] == printed[1] and printed[0].count("\n") >= 7
    # Another seed is another file: the comparison can fail.
    assert main([str(word) for word in [*command, "--seed", 6, "--out", tmp_path / "other.jsonl"]]) == 0
    assert (tmp_path / "other.jsonl").read_bytes() != one


def test_infills_are_those_of_one_process(checkpoints, tmp_path):
    from PIL import Image

    command = ["infill", checkpoints["text"], "--text", "the ___ sat", "--count", 5, "--batch", 2]
    one, two = (drawn(command, count, tmp_path / "log") for count in (1, 2))
    assert one == two and one.count("\n") >= 5
    Image.fromarray(numpy.arange(64, dtype=numpy.uint8).reshape(8, 8) * 4).save(tmp_path / "digit.png")
    command = ["infill", checkpoints["digits"], "--image", tmp_path / "digit.png", "--box", "0,4,8,8",
               "--count", 5, "--batch", 2, "--sites-per-step", 8]  # fmt: skip
    for count, name in ((1, "one"), (2, "two")):
        told = drawn([*command, "--out", tmp_path / name], count, tmp_path / "log")
        assert told == "32 of 64 tokens drawn\n"
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 5
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one.grid.png").read_bytes() == (tmp_path / "two.grid.png").read_bytes()


def test_scores_are_those_of_one_process(checkpoints, models, tmp_path):
    source = tmp_path / "a.txt"
    source.write_text("the cat sat on a mat. " * 40)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"out: {tmp_path / 'run'}\n"
        f"data: {{kind: text, source: {source}, tokenizer: {checkpoints['text'] / TOKENIZER}, held_out: 9}}\n"
        "model: {chain: {length: 20}}\n"
    )
    command = ["evaluate", checkpoints["text"], "--count", 7, "--batch", 3, "--data", config, "--times", 3,
               "--likelihood-times", 4, "--model", models["gpt2"], "--max-length", 20, "--score-batch", 2]  # fmt: skip
    results = []
    for count, name in ((1, "one"), (2, "two")):
        out = tmp_path / f"{name}.json"
        drawn([*command, "--save-samples", tmp_path / f"{name}.npy", "--out", out], count, tmp_path / "log")
        result = json.loads(out.read_text())
        results.append(
            {key: result[key] for key in ("generative_perplexity", "likelihood", "held_out", "distinct")}
        )
    assert results[0] == results[1] and results[0]["likelihood"]["sequences"] == 9
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "two.npy").read_bytes()


def test_each_process_has_a_gpu_of_its_own():
    assert Processes(3, 4, 1).device("cuda") == "cuda:1"
    assert Processes(3, 4, 1).device("cuda:0") == "cuda:0" and Processes(3, 4, 1).device("cpu") == "cpu"
    assert Processes().device("cuda") == "cuda"
