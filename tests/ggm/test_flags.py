"""Flags are those of the dataclasses; help comes at once; what a command tells before it does anything."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
from small_runs import trained, written

import ggm_kernels
from ggm import GGM, ChainConfig, GGMConfig, HollowConfig, Ramp, SamplingConfig
from ggm.commands import COMMANDS
from ggm.commands.cli import _parser, main
from ggm.commands.drawing import GenerateConfig
from ggm.commands.flags import Flags, attribute_docs, description, with_flags
from ggm.evaluation.config import MauveConfig, PerplexityConfig, ReadConfig, ScoreConfig
from ggm.training.config import read_config
from ggm.training.vq_config import VQConfig


@dataclass(frozen=True)
class Things:
    """Things of all kinds.

    More about them.

    Attributes
    ----------
    source : str
        Where they are.
    count, size : int
        How many, 100% of them.
    share : float or Ramp
        Whether `count` matters, ..
    kind : str
        Which.
    words : list of str
        Again and again.
    place : Path or None
        A file.
    big : bool
        Whether they are big.

    Notes
    -----
    colour : str
        Not an attribute.
    """

    source: str
    count: int = 0
    size: int | None = None
    share: float | Ramp = 0.5
    kind: Literal["red", "blue"] = "red"
    words: list[str] = field(default_factory=list)
    place: Path | None = None
    big: bool = False

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count, size: got {self.count}, {self.size}; allowed: with `share`, 0 or more")


def parsed(flags: Flags, *words: str):
    import argparse

    parser = argparse.ArgumentParser()
    flags.add(parser)
    return parser.parse_args(words), " ".join(parser.format_help().split())


def test_types_defaults_and_help_are_those_of_the_fields():
    flags = Flags(Things, names={"size": "side_length"})
    options, told = parsed(flags, "here")
    assert flags.make(options) == Things("here")
    words = "here --count 3 --side-length 4 --share 1:0.5 --kind blue --words a --words b --place x --big"
    options, _ = parsed(flags, *words.split())
    expected = Things("here", 3, 4, Ramp(1.0, 0.5), "blue", ["a", "b"], Path("x"), True)
    assert flags.make(options) == expected
    assert flags.make(options, count=5).count == 5
    for line in (
        "SOURCE Where they are",
        "--count N How many, 100% of them (default: 0)",
        "--side-length N How many, 100% of them",
        "--share X --count matters, .. (default: 0.5)",
        "--kind {red,blue} Which (default: red)",
        "--big They are big",
    ):
        assert line in told, line


def test_errors_name_flags():
    flags = Flags(Things, names={"size": "side_length"}, path="things")
    options, _ = parsed(flags, "here", "--count", "-1")
    with pytest.raises(ValueError) as refused:
        flags.make(options)
    expected = "--count, --side-length: got -1, None; allowed: with --share, 0 or more"
    assert str(refused.value) == expected
    assert flags.words()["things.size"] == "--side-length" and "size" not in flags.words()
    words = {"size": "--side-length"}
    assert (
        with_flags("size: got `size`, not `colour`", words)
        == "--side-length: got --side-length, not `colour`"
    )
    # Not a field: a file, a key of a configuration, one name of two, no name at all.
    for message in ("a/size: gone", "data.size: got 1", "size, colour: got 1", "size is 1"):
        assert with_flags(message, words) == message


def test_docstrings_are_taken_apart():
    docs = attribute_docs(Things)
    assert set(docs) == set(Things.__dataclass_fields__) and docs["size"] == docs["count"]
    assert description(Things) == "Things of all kinds.\n\nMore about them."

    @dataclass(frozen=True)
    class More(Things):
        """More things.

        Attributes
        ----------
        big : bool
            Whether they are bigger.
        """

    assert attribute_docs(More) == {**docs, "big": "Whether they are bigger."}


def flags_named(source: str) -> list[str]:
    """Texts of a program, but docstrings, that name flags of the command line."""
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in texts if re.search(r"--[a-z]", node.value) and id(node) not in docstrings]


def test_the_library_names_fields_and_no_flags():
    root = Path(__file__).parents[2] / "ggm"
    found = {
        text
        for path in root.rglob("*.py")
        if "commands" not in path.parts
        for text in flags_named(path.read_text(encoding="utf-8"))
    }
    assert all("--fsdp_version" in text for text in found)  # of accelerate
    assert flags_named('"""--a"""\nraise ValueError(f"--count: got {1}")') == ["--count: got "]


@pytest.mark.parametrize(
    "cls", [SamplingConfig, GenerateConfig, PerplexityConfig, MauveConfig, ReadConfig, ScoreConfig, VQConfig]
)
def test_every_field_is_documented(cls):
    assert set(attribute_docs(cls)) >= set(cls.__dataclass_fields__)


def test_the_commands_have_the_flags_that_they_had():
    """Scripts go on: no flag of the first edition has gone."""
    drawing = """--count --seed --batch --device --sites-per-step --keep-or-replace --event-driven --horizon
        --order --confidence-threshold --evaluations-per-pass --redenoise --redenoise-repeats --corrector-sweeps --cuda-graph --temperature --top-k --top-p --min-p"""
    metrics = """--out --model --precision --max-length --start-token --score-batch --unit --reference
        --mauve-model --grid --levels --fid-network --column --txt"""
    expected = {
        "demo": "--seconds --seed --out --samples --web --checkpoint --port",
        "train": "--set --resume --max-steps --quiet --print-config --dry-run",
        "sample": f"{drawing} --out",
        "infill": f"{drawing} --text --gap --image --mask --box --out",
        "evaluate": f"{drawing} {metrics} --data --no-held-out --times --likelihood-times --reference-count --save-samples",
        "score": f"{metrics} --size --tokenizer --meta --device",
        "info": "",
        "plot": "--out",
        "train-vq": """--out --size --downsampling --codebook --latent-channels --width --grey --steps --batch
            --learning-rate --seed --column --device --quiet""",
    }
    expected["completion"] = ""
    (commands,) = (action.choices for action in _parser()._actions if isinstance(action.choices, dict))
    found = {name: set(parser._option_string_actions) - {"-h", "--help"} for name, parser in commands.items()}
    assert found == {name: set(flags.split()) for name, flags in expected.items()}
    assert tuple(commands) == COMMANDS


def test_help_and_version_do_without_torch():
    """Torch takes seconds to load."""
    code = """
import sys
from ggm.commands import COMMANDS
from ggm.commands.cli import main
for words in ([], *([name] for name in COMMANDS)):
    try:
        main([*words, sys.argv[1]] if words else [sys.argv[1]])
    except SystemExit as left:
        assert left.code == 0
    if sys.argv[1] == "--version":
        break
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    told = {}
    for word in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told[word] = done.stdout
    assert told["--version"] == f"ggm {ggm_kernels.__version__}\n"
    assert all(f"usage: ggm {name} " in told["--help"] for name in COMMANDS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_shell_completes_commands_and_flags(capsys):
    assert main(["completion"]) == 0
    script = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in ("ggm", *words))
        ask = f'COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _ggm; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("") == list(COMMANDS)
    assert completed("tra") == ["train", "train-vq"]
    assert completed("sample", "outputs", "--top") == ["--top-k", "--top-p"]
    assert completed("train", "--s") == ["--set"] and completed("info", "--s") == []


def test_a_printed_configuration_is_that_of_the_run(tmp_path, capsys):
    path = written(tmp_path)
    assert main(["train", str(path), "--set", "training.steps=7", "--print-config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert read_config(printed) == read_config(path, ["training.steps=7"])
    assert "learning_rate: 0.002" in printed.read_text() and not (tmp_path / "run").exists()


def test_a_dry_run_tells_and_writes_nothing(tmp_path, capsys):
    path = written(tmp_path)
    before = set(os.listdir(tmp_path))
    assert main(["train", str(path), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "data: 1437 sequences of 64 tokens, 360 held out; vocabulary 4\n" in told
    assert re.search(r"model: masked, \d+ parameters; T = 128\n", told)
    result = trained(tmp_path, "log_every=1", out="other")
    assert set(os.listdir(tmp_path)) == before | {"other", "other.yaml"}
    first = (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()[0]
    loss = float(re.search(r'"loss": ([\d.]+)', first)[1])
    assert f"training: 12 steps of 8 sequences; loss at first {loss:.4f}\n" in told and result.steps == 12
    for override, message in (
        ("training.batch_size=2000", "training.batch_size: got 2000; allowed: at most the 1437 sequences"),
        ("model.chain.length=63", "model.chain.length: got 63; allowed for digits: 64"),
    ):
        assert main(["train", str(path), "--set", override, "--dry-run"]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    [["noise=unigram"], ["model.backbone.kind=hollow", "model.masked_counts=[64]", "model.frozen_share=1"]],
)
def test_a_dry_run_has_the_first_loss_of_the_run(overrides, tmp_path, capsys):
    words = [word for override in overrides for word in ("--set", override)]
    assert main(["train", str(written(tmp_path)), "--dry-run", *words]) == 0
    told = float(re.search(r"loss at first ([\d.]+)\n", capsys.readouterr().out)[1])
    trained(tmp_path, *overrides, max_steps=1)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert told == pytest.approx(first["loss"], abs=1e-4)


def test_info_tells_what_a_checkpoint_holds(tmp_path, capsys):
    result = trained(tmp_path)
    assert main(["info", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    parameters = sum(p.numel() for p in GGM.from_pretrained(result.checkpoint).parameters())
    for line in (
        f"checkpoint  {result.checkpoint}",
        f"network     masked, {parameters} parameters",
        "tokens      vocabulary 4 (GreyLevels), sequences of 64",
        "chain       2 sweeps, T = 128",
        "training    12 steps in ",
        f"run         {tmp_path / 'run' / 'config.yaml'}",
    ):
        assert line in told, line
    assert re.search(r"held out    loss [\d.]+, calibration [\d.]+\n", told)
    torch.manual_seed(0)
    model = GGM(GGMConfig(3, ChainConfig(4), HollowConfig(width=8, heads=1), noise_probs=(0.5, 0.25, 0.25)))
    model.save_pretrained(tmp_path / "bare")
    assert main(["info", str(tmp_path / "bare")]) == 0
    told = capsys.readouterr().out
    assert "vocabulary 3 (no tokenizer)" in told and "3 probabilities" in told and "training " not in told
    assert main(["info", str(tmp_path / "none")]) == 1
    assert "neither a folder with config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("infill {0} --text a_ --image x.png", "--text, --image: got both or none; allowed: one of them"),
        ("infill {0}", "--text, --image: got both or none"),
        ("infill {0} --image x.png --mask m.png --box 0,0,1,1 --out a.png", "--mask, --box: got both"),
        ("sample {0} --count 0", "--count, --batch: got 0, 64; allowed: 1 or more"),
        ("evaluate {0} --no-held-out --levels 2", "--levels: got 2 without --grid; allowed: with it"),
        ("evaluate {0} --no-held-out --score-batch 0", "--score-batch: got 0; allowed: 1 or more"),
        ("evaluate {0} --no-held-out --model x --score-batch 0", "--score-batch: got 0; allowed: 1 or more"),
        ("evaluate {0} --no-held-out --batch 0", "--count, --batch: got 64, 0; allowed: 1 or more"),
        ("evaluate {0} --no-held-out --times 0", "--times: got 0; allowed: 1 or more"),
        ("evaluate {0} --no-held-out --likelihood-times 0", "--likelihood-times: got 0; allowed: 1 or more"),
        ("evaluate {0} --no-held-out --sites-per-step 0", "--sites-per-step: got 0; allowed: 1 to 4"),
        ("score {0}/config.json --grid 2,2 --levels 300", "--levels: got 300; allowed: 2 to 256"),
        ("train {0}/run.yaml --set out", "--set: got 'out'; allowed: KEY=VALUE"),
        ("train {0}/run.yaml --set tracker=none", "run: holds checkpoints of a run; --resume continues it"),
        ("train-vq {0} --out {0}/vq --batch 0", "--batch: got 0; allowed: 1 or more"),
        ("train-vq {0} --out {0}/vq --codebook 0", "--codebook: got 0; allowed: 1 or more"),
    ],
)
def test_errors_of_the_library_name_the_flags_of_the_command(words, told, tmp_path, capsys):
    backbone = HollowConfig(width=8, depth=1, mixing=1, heads=1)
    GGM(GGMConfig(3, ChainConfig(4, sweeps=1), backbone)).save_pretrained(tmp_path)
    written(tmp_path)
    (tmp_path / "run" / "checkpoints" / "step-1").mkdir(parents=True)
    assert main(words.format(tmp_path).split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("ggm: error: ") and told in error and error.count("\n") == 1
