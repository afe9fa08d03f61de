import json
import math
import shutil
from pathlib import Path

import numpy
import pytest
import torch

from ggm import GGM, extras
from ggm.commands import evaluate, provenance
from ggm.commands.cli import main
from ggm.data.digits import load_digits
from ggm.evaluation.distances import copied_share, frechet_distance
from ggm.evaluation.scoring import Scoring
from ggm.training.config import read_config
from ggm.training.run import run

RUN = """\
model:
  chain: {length: 64, sweeps: 1}
  backbone: {width: 16, depth: 1, heads: 2}
  objective: {noise_ratio: 10.0}
  masked_counts: [16]
training: {steps: 2, batch_size: 8}
tracker: none
"""
NEVER = "the quick brown fox jumps over the lazy dog. "


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Runs of two steps, of text and of digits."""
    from accelerate.state import AcceleratorState, GradientState

    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(NEVER * 200)
    data = {
        "text": f"{{kind: text, source: {folder / 'text.txt'}, held_out: 20}}",
        "digits": "{kind: digits}",
    }
    for name, value in data.items():
        config = folder / f"{name}.yaml"
        config.write_text(f"out: {folder / name}\ndata: {value}\n{RUN}")
        run(read_config(config), progress=False)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    return {name: folder / name for name in data}


def told(capsys, *words) -> dict:
    assert main([str(word) for word in words]) == 0
    return json.loads(capsys.readouterr().out)


def error(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 1
    text = capsys.readouterr().err
    assert text.startswith("ggm: error: ") and text.count("\n") == 1
    return text


def test_evaluate_text_and_score_its_samples_again(runs, models, tmp_path, capsys):
    metrics = ("--model", models["gpt2"], "--max-length", 20, "--precision", "fp64")
    file = tmp_path / "samples.jsonl"
    found = told(capsys, "evaluate", runs["text"], "--count", 11, "--batch", 4, "--seed", 5,
                 "--save-samples", file, "--times", 2, "--likelihood-times", 3, *metrics)  # fmt: skip
    assert found["command"] == "evaluate" and found["call"]["count"] == 11 and "run" not in found["call"]
    sampling = found["sampling"]
    assert set(provenance.KEYS) == set(sampling)
    assert sampling["seed"] == 5 and sampling["step"] == 2
    # 64 positions, 16 at a time; batches of 4, 4 and 3.
    assert sampling["network_evaluations"] == 12 and sampling["network_evaluations_per_sample"] == 4
    assert sampling["site_updates"] == 11 * 64 and sampling["seconds"] > 0
    assert sampling["precision"]["scores"] == "float32" and sampling["precision"]["random_bits"] == 32
    assert set(sampling["versions"]) == {"ggm_kernels", "torch", "transformers", "torchmetrics"}
    assert found["versions"]["torch"] == torch.__version__
    assert found["generative_perplexity"]["samples_scored"] == found["samples"]["count"] == 11
    assert found["samples"]["unit"] == "scorer" and found["mauve"] is found["images"] is None
    held_out = found["held_out"]
    assert len(held_out["by_time"]) == 2 and held_out["sequences"] == 20
    bound = found["likelihood"]
    assert (bound["times"], bound["sequences"], bound["sites_per_step"], bound["seed"]) == (3, 20, 16, 5)
    # Two steps of training know nothing yet.
    size = sampling["vocab_size"]
    assert bound["nats_per_token"] == pytest.approx(math.log(size), rel=0.05)
    assert bound["bits_per_token"] == pytest.approx(bound["nats_per_token"] / math.log(2))
    assert bound["perplexity"] == pytest.approx(math.exp(bound["nats_per_token"]))
    assert 0 < bound["standard_error"] < 1
    # The data repeat one sentence; the samples of two steps of training are noise.
    real = held_out["scores"]
    assert real["samples"]["count"] == real["generative_perplexity"]["samples_scored"] == 11
    assert real["distinct"]["3"]["pooled"] < 0.5 * found["distinct"]["3"]["pooled"]

    again = told(capsys, "score", file, *metrics)
    assert again["sampling"] == json.loads(json.dumps(sampling))
    for key in ("generative_perplexity", "unigram_entropy", "distinct", "samples"):
        assert again[key] == {**found[key], **({"file": str(file)} if key == "samples" else {})}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    own = told(capsys, "score", file, "--unit", "samples")
    assert own["samples"]["tokens"] == sum(len(row["tokens"]) for row in rows) == 11 * 64
    assert own["generative_perplexity"] is None


def test_samples_are_those_of_ggm_sample_whatever_the_batch(runs, tmp_path, capsys):
    for batch, name in ((4, "a.npy"), (64, "b.npy")):
        words = ["sample", runs["text"], "--count", 6, "--batch", batch, "--out", tmp_path / name]
        assert main([str(word) for word in words]) == 0
    first, second = (numpy.load(tmp_path / name) for name in ("a.npy", "b.npy"))
    assert numpy.array_equal(first, second)
    records = [json.loads((tmp_path / f"{name}.meta.json").read_text()) for name in ("a.npy", "b.npy")]
    assert [record["network_evaluations"] for record in records] == [8, 4]
    assert [record["network_evaluations_per_sample"] for record in records] == [4, 4]
    assert records[0]["config"]["batch"] == 4 and records[0]["site_updates_per_second"] > 0
    found = told(capsys, "score", tmp_path / "a.npy", "--tokenizer", runs["text"] / "tokenizer.json",
                 "--unit", "characters")  # fmt: skip
    assert found["samples"]["count"] == 6 and found["sampling"]["seed"] == 0


def test_evaluate_digits_against_their_training_set(runs, tmp_path, capsys):
    file = tmp_path / "digits.npy"
    words = ("evaluate", runs["digits"], "--count", 30, "--save-samples", file, "--times", 1)
    found = told(capsys, *words)
    digits, samples = load_digits(), torch.from_numpy(numpy.load(file))
    images = found["images"]
    assert images["pixel_frechet_distance"] == pytest.approx(frechet_distance(samples, digits.train))
    assert images["copied_share"] == copied_share(samples, digits.train)
    real = found["held_out"]["scores"]["images"]
    assert images["reference_images"] == 1437 and images["samples"] == real["samples"] == 30
    held_out = frechet_distance(digits.held_out[:30], digits.train)
    assert real["pixel_frechet_distance"] == pytest.approx(held_out)
    # Two steps of training do not make digits.
    assert images["pixel_frechet_distance"] > 3 * held_out
    assert found["samples"] == {"count": 30, "tokens": 30 * 64, "unit": "samples"}
    assert found["unigram_entropy"] is found["distinct"] is found["mauve"] is None

    numpy.save(tmp_path / "train.npy", digits.train.numpy())
    out = tmp_path / "result.json"
    score = ["score", file, "--grid", "8,8", "--reference", tmp_path / "train.npy", "--out", out]
    assert main([str(word) for word in score]) == 0
    again = json.loads(out.read_text())["images"]
    assert again == images
    told_in_words = capsys.readouterr().out
    assert "30 samples, 1920 tokens of their own" in told_in_words
    assert "against 1437 images: pixel Frechet distance" in told_in_words


def test_a_checkpoint_alone_is_told_to_have_no_data(runs, tmp_path, capsys):
    (checkpoint,) = (runs["text"] / "checkpoints").glob("step-*")
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    assert main(["evaluate", str(moved), "--count", "2"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["held_out"] is json.loads(captured.out)["likelihood"] is None
    assert "--data CONFIG" in captured.err
    config = runs["text"] / "config.yaml"
    found = told(capsys, "evaluate", moved, "--count", 2, "--data", config)
    assert found["held_out"]["sequences"] == 20
    quiet = ["evaluate", str(runs["text"]), "--count", "2", "--no-held-out"]
    assert main(quiet) == 0 and '"held_out": null' in capsys.readouterr().out
    assert "allowed: 4, the vocabulary" in error(capsys, "evaluate", runs["digits"], "--data", config)


def test_the_file_of_an_old_run_tells_what_it_held_out(runs, tmp_path, monkeypatch, capsys):
    old, moved, seen = tmp_path / "old", tmp_path / "moved", []
    shutil.copytree(runs["text"], old)
    (checkpoint,) = (old / "checkpoints").glob("step-*")
    checkpoint.rename(moved)
    config = old / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "held_out_by" not in line))
    real = evaluate._data
    monkeypatch.setattr(evaluate, "_data", lambda run, *rest: seen.append(run.data) or real(run, *rest))
    told(capsys, "evaluate", moved, "--count", 2, "--data", config)
    assert [data.held_out_by for data in seen] == ["first"]


def test_what_is_not_known_is_null_and_meta_tells_it(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a b a\n\nb c\n")
    found = told(capsys, "score", tmp_path / "a.txt")
    assert found["sampling"] == dict.fromkeys(provenance.KEYS)
    assert found["samples"] == {"file": str(tmp_path / "a.txt"), "count": 2, "tokens": 5, "unit": "words"}
    assert found["distinct"]["1"]["pooled"] == pytest.approx(3 / 5)
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"seed": 3, "precision": "float64 Gumbel", "system": "another"}))
    sampling = told(capsys, "score", tmp_path / "a.txt", "--meta", meta)["sampling"]
    assert sampling["precision"] == "float64 Gumbel" and sampling["seed"] == 3
    assert sampling["network_evaluations"] is None and sampling["system"] == "another"


def test_json_has_no_nan():
    assert json.loads(provenance.to_json({"a": [float("nan"), 1.5], "b": float("inf"), "c": Path("x")})) == {
        "a": [None, 1.5],
        "b": None,
        "c": "x",
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("score {0}/none.txt", "no such file"),
        ("score {0}/a.txt --model {0}/none", "there is no folder"),
        ("score {0}/a.txt --model {0}", "gives no causal language model"),
        ("score {0}/a.txt --model no-such-name", "gives no causal language model"),
        ("score {0}/a.txt --unit scorer", "without --model"),
        ("score {0}/a.txt --unit samples", "got no tokens"),
        ("score {0}/a.txt --meta {0}/none.json", "no such file"),
        ("score {0}/a.txt --meta {0}/a.txt", "not JSON"),
        ("score {0}/a.txt --out {0}/none/a.json", "no folder"),
        ("score {0}/a.txt --out {0}", "--out: got the folder"),
        ("score {0}/a.txt --device nowhere", "--device"),
        ("score {0}/a.txt --score-batch 0", "--score-batch: got 0; allowed: 1 or more"),
        ("score {0}/a.npy --grid 2,2 --reference {0}/a.npy --score-batch 0", "--score-batch: got 0"),
        ("score {0}/a.txt --grid 2,2", "no tokens of one length"),
        ("score {0}/a.npy --grid 2", "--grid"),
        ("score {0}/a.npy --grid 2,x", "--grid"),
        ("score {0}/a.npy --grid 2,3", "allowed: 6, those of an image"),
        ("score {0}/a.npy --grid 2,2 --levels 2", "allowed: 0 to 1"),
        ("score {0}/a.npy --levels 2", "without --grid"),
        ("score {0}/a.npy --grid 2,2 --levels 0", "--levels: got 0; allowed: 2 to 256"),
        ("score {0}/a.npy --grid 2,2 --model m", "language model for images"),
        ("score {0}/a.npy --grid 2,2 --fid-network f.pt", "without a reference"),
        ("score {0}/a.npy --grid 2,2 --reference {0}/a.npy --fid-network {0}/f.pt", "no file"),
        ("score {0}/a.npy --fid-network f.pt", "without --grid"),
        ("score {0}/a.npy --reference {0}/a.npy", "got tokens; allowed: text"),
        ("score {0}/a.npy --unit words", "got no text"),
        ("score {0}/a.npy --tokenizer char", "--tokenizer"),
        ("evaluate {0}", "neither a folder"),
    ],
)  # fmt: skip
def test_errors_are_one_line(words, told, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a b\n")
    numpy.save(tmp_path / "a.npy", numpy.array([[0, 1, 2, 3]]))
    assert told in error(capsys, *(word.format(tmp_path) for word in words.split()))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--data none.yaml", "--data: there is no file"),
        ("--times 0", "--times"),
        ("--reference-count 1", "--reference-count"),
        ("--save-samples a.txt", "--save-samples: got 'a.txt'"),
        ("--device nowhere", "--device"),
        ("--count 0", "--count"),
        ("--grid 8,8 --levels 0", "--levels: got 0; allowed: 2 to 256"),
        ("--out {0}", "--out: got the folder {0}; allowed: the name of a file"),
        ("--out {0}/none/a.json", "--out: there is no folder {0}/none"),
    ],
)
def test_errors_of_evaluate_come_before_the_work(runs, words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(GGM, "sample", lambda *_, **__: pytest.fail("drawing began"))
    words, told = words.format(tmp_path), told.format(tmp_path)
    assert told in error(capsys, "evaluate", runs["digits"], *words.split())


@pytest.mark.parametrize("command", ["score", "evaluate"])
def test_a_result_that_cannot_be_written_is_told_before_the_work(
    runs, command, tmp_path, monkeypatch, capsys
):
    (tmp_path / "a.txt").write_text("a b\n")
    of = {"score": tmp_path / "a.txt", "evaluate": runs["digits"]}[command]
    monkeypatch.setattr(GGM, "sample", lambda *_, **__: pytest.fail("drawing began"))
    monkeypatch.setattr(Scoring, "score", lambda *_, **__: pytest.fail("scoring began"))
    monkeypatch.setattr("ggm.files.os.access", lambda path, mode: False)  # root may write anywhere
    told = error(capsys, command, of, "--out", tmp_path / "a.json")
    assert told == f"ggm: error: --out: no permission to write into {tmp_path}\n"


def test_tokens_need_a_tokenizer_to_be_text(models, tmp_path, capsys):
    numpy.save(tmp_path / "a.npy", numpy.array([[0, 1]]))
    assert "allowed: with --tokenizer" in error(
        capsys, "score", tmp_path / "a.npy", "--model", models["gpt2"]
    )


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("transformers", "score {0}/a.txt --model m"),
        ("torchmetrics", "score {0}/a.npy --grid 1,2 --reference {0}/a.npy --fid-network f.pt"),
    ],
)
def test_a_missing_package_is_one_line(missing, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.txt").write_text("a b\n")
    numpy.save(tmp_path / "a.npy", numpy.array([[0, 1]]))
    real = extras.importlib.import_module

    def import_module(name, *rest):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(extras.importlib, "import_module", import_module)
    text = error(capsys, *(word.format(tmp_path) for word in words.split()))
    assert text == f"ggm: error: {missing} is not installed: pip install 'ggm-kernels[eval]'\n"
