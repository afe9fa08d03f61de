"""Errors of the commands are one line; `ggm sample` and `ggm infill` tell their cost to who watches."""

import dataclasses
import json
import shutil

import numpy
import pytest
import torch

from ggm import GGM, ChainConfig, GGMConfig, HollowConfig, MaskedConfig, Ramp, ReDenoise, SamplingConfig
from ggm.commands.cli import main
from ggm.data.text import char_tokenizer
from ggm.training.checkpoints import TOKENIZER


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of tokens, with new weights."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    backbone = MaskedConfig(width=8, depth=1, heads=1)
    chain = ChainConfig(length=6, sweeps=2)
    GGM(GGMConfig(vocab_size=3, chain=chain, backbone=backbone, masked_counts=(2,))).save_pretrained(folder)
    return folder


def error(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 1
    out, told = capsys.readouterr()
    assert out == "" and told.startswith("ggm: error: ") and told.count("\n") == 1
    return told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.seconds=-1", "training.seconds: got -1.0; allowed: above 0"),
        ("training.steps=0", "training.steps: got 0; allowed: 1 or more"),
        ("training.batch_size=0", "training.batch_size: got 0; allowed: 1 or more"),
        ("training.learning_rate=0", "training.learning_rate: got 0.0; allowed: above 0"),
        ("training.learning_rate=.inf", "training.learning_rate: got inf; allowed: above 0, finite"),
        ("training.ema_decay=.nan", "training.ema_decay: got nan; allowed: 0 or more, below 1"),
        ("training.ema_decay=1", "training.ema_decay: got 1.0; allowed: 0 or more, below 1"),
        ("training.clip=-1", "training.clip: got -1.0; allowed: above 0"),
        ("training.clip=0", "training.clip: got 0.0; allowed: above 0"),
        ("training.clip=.nan", "training.clip: got nan; allowed: above 0"),
        ("training.warmup=-0.1", "training.warmup: got -0.1; allowed: 0 to 1"),
        ("training.warmup=500", "training.warmup: got 500.0; allowed: 0 to 1"),
        ("training.final_share=-3", "training.final_share: got -3.0; allowed: 0 to 1"),
        ("training.weight_decay=-1", "training.weight_decay: got -1.0; allowed: 0 or more, finite"),
        ("training.betas=[0.9, 1]", "training.betas: got (0.9, 1.0); allowed: 0 or more, below 1"),
        ("training.seed=-1", "training.seed: got -1; allowed: 0 to 2**64 - 1"),
        ("training.seed=99999999999999999999", "training.seed: got 99999999999999999999; allowed: 0 to 2"),
        ("model.chain.order_seed=-1", "model.chain.order_seed: got -1; allowed: 0 to 2**64 - 1"),
        ("model.backbone.grid=[-8, -8]", "model.backbone.grid: got (-8, -8); allowed: extents of 1 or more"),
        ("model.backbone.grid=[]", "model.backbone.grid: got (); allowed: extents of 1 or more"),
        (
            "model.backbone.mlp_ratio=0",
            "model.backbone.mlp_ratio: got 0.0; allowed: 1 / width = 0.0078125 and",
        ),
        ("model.backbone.mlp_ratio=-1", "model.backbone.mlp_ratio: got -1.0; allowed: 1 / width"),
        ("model.backbone={kind: hollow, mlp_ratio: .inf}", "model.backbone.mlp_ratio: got inf; allowed: 1 /"),
        ("model.objective={form: observed, candidates: 3}", "candidates: got a value for form 'observed'"),
        ("model.objective.noise_ratio=.inf", "noise_ratio: got inf; allowed: None or above 0, finite"),
        ("model.backbone.heads=0", "model.backbone.heads: got 0; allowed: 1 or more"),
        ("model.objective.form=x", "allowed: observed, summed, marginal, cross_entropy"),
    ],
)
def test_values_of_a_run(override, told, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"out: {tmp_path / 'run'}\ndata: {{kind: digits, levels: 4}}\n"
        "model: {chain: {length: 64}, backbone: {kind: masked}}\ntraining: {steps: 3}\n"
    )
    assert told in error(capsys, "train", config, "--set", override)
    assert "--max-steps: got 0; allowed: 1 or more" in error(capsys, "train", config, "--max-steps", "0")
    assert not (tmp_path / "run").exists()


def test_missing_and_damaged_files(model, tmp_path, capsys):
    missing = tmp_path / "none.yaml"
    assert error(capsys, "train", missing) == f"ggm: error: {missing}: no such file or directory\n"
    (tmp_path / "config.json").write_text("{bad")
    assert f"{tmp_path / 'config.json'}: not JSON" in error(capsys, "sample", tmp_path)
    for text, told in (("[1]", "got list"), ('{"vocab_size": 3}', "chain: missing"), ("\xff", "not UTF-8")):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        assert f"{tmp_path / 'config.json'}: {told}" in error(capsys, "sample", tmp_path)


@pytest.mark.parametrize("device", ["abacus", "meta"])
def test_devices(device, model, tmp_path, capsys):
    words = ["train-vq", tmp_path, "--out", tmp_path / "vq"]
    for command in (words, ["sample", model]):
        assert f"--device: got {device!r}; allowed: " in error(capsys, *command, "--device", device)


def test_a_damaged_record_of_progress_is_named(model, tmp_path, capsys):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "progress.json").write_text('{"step": 3')
    told = error(capsys, "sample", folder, "--out", tmp_path / "x.npy")
    assert told.startswith(f"ggm: error: {folder / 'progress.json'}: not JSON: ")


@pytest.mark.parametrize("sites", [0, -1, 7])
def test_sites_per_step(sites, model, capsys):
    assert f"--sites-per-step: got {sites}; allowed: 1 to 6" in error(
        capsys, "sample", model, "--sites-per-step", sites
    )


@pytest.fixture(scope="module")
def hollow(tmp_path_factory):
    """A checkpoint of a hollow network, its weights random."""
    folder = tmp_path_factory.mktemp("cli") / "hollow"
    backbone = HollowConfig(width=8, depth=1, mixing=1, heads=1)
    torch.manual_seed(0)
    chain = ChainConfig(length=6, sweeps=3)
    made = GGM(GGMConfig(vocab_size=5, chain=chain, backbone=backbone, predicts="data"))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("--order random --keep-or-replace", {"order": "random", "keep_or_replace": True}),
        (
            "--order confidence --confidence-threshold 0.6 --sites-per-step 2 --redenoise 1",
            {
                "order": "confidence",
                "confidence_threshold": 0.6,
                "sites_per_step": 2,
                "redenoise": ReDenoise(1),
            },
        ),
        (
            "--order random --evaluations-per-pass 3",
            {"order": "random", "evaluations_per_pass": 3},
        ),
        ("--event-driven --keep-or-replace", {"event_driven": True, "keep_or_replace": True}),
        ("--event-driven --horizon 2", {"event_driven": True, "horizon": 2}),
        ("--redenoise 2", {"redenoise": ReDenoise(2)}),
        ("--redenoise 2 --redenoise-repeats 3", {"redenoise": ReDenoise(2, 3)}),
        ("--temperature 0.7 --top-k 3 --min-p 0.1", {"temperature": 0.7, "top_k": 3, "min_p": 0.1}),
        (
            "--temperature 2:0.5 --top-p 1:0.6 --sites-per-step 2",
            {"temperature": Ramp(2.0, 0.5), "top_p": Ramp(1.0, 0.6), "sites_per_step": 2},
        ),
    ],
)
def test_options_are_the_settings_of_python(words, settings, hollow, tmp_path):
    out = tmp_path / "samples.npy"
    drawn = ["sample", hollow, "--count", 9, "--seed", 4, "--out", out, *words.split()]
    assert main([str(word) for word in drawn]) == 0
    model = GGM.from_pretrained(hollow)
    expected = model.sample(9, SamplingConfig(**settings), seed=4)
    assert torch.equal(torch.from_numpy(numpy.load(out)), expected.tokens)
    assert not torch.equal(model.sample(9, seed=4).tokens, expected.tokens)
    recorded = json.loads((tmp_path / "samples.npy.meta.json").read_text())
    assert recorded["config"]["sampling"] == dataclasses.asdict(SamplingConfig(**settings))
    assert recorded["network_evaluations"] == expected.network_evaluations


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--horizon 2", "--horizon: got 2; allowed: None or, if event_driven, 1 or more"),
        ("--event-driven --horizon 0", "--horizon: got 0; allowed"),
        ("--event-driven --sites-per-step 2", "--sites-per-step: got 2; allowed: 1 if event_driven"),
        ("--order random --cuda-graph", "--order: got 'random' with cuda_graph; allowed: chain"),
        ("--confidence-threshold 0.9", "--confidence-threshold: got 0.9; allowed: None or, if --order is"),
        ("--event-driven --cuda-graph", "--cuda-graph: got True with event_driven"),
        ("--cuda-graph --temperature 2:1", "--temperature: got a Ramp with cuda_graph"),
        ("--redenoise 0", "--redenoise: got 0; allowed: 1 to 3"),
        ("--redenoise 4", "--redenoise: got 4; allowed: 1 to 3"),
        ("--redenoise-repeats 2", "--redenoise-repeats: got 2; allowed: with --redenoise, 1 or more"),
        ("--redenoise 1 --redenoise-repeats 0", "--redenoise-repeats: got 0; allowed"),
        ("--temperature 1:-1", "--temperature.end: got -1.0; allowed: finite and 0 <="),
        ("--top-p 0", "--top-p: got 0.0; allowed"),
        ("--top-k 0", "--top-k: got 0; allowed"),
        ("--min-p 1.5", "--min-p: got 1.5; allowed"),
    ],
)
def test_settings_that_do_not_go_together(words, told, hollow, capsys):
    assert told in error(capsys, "sample", hollow, *words.split())


def test_events_need_a_hollow_network(model, capsys):
    told = error(capsys, "sample", model, "--event-driven")
    assert (
        told == "ggm: error: --event-driven: got a masked network; allowed: with a hollow one or a denoiser\n"
    )


def test_an_order_needs_a_network_that_predicts_the_data_everywhere(model, capsys):
    told = error(capsys, "sample", model, "--order", "confidence")
    assert told.startswith(
        "ggm: error: --order: got one for a masked network that predicts the state; allowed: "
    )


@pytest.mark.parametrize("words", ["--temperature hot", "--temperature 1:2:3", "--top-p 1:", "--top-p :"])
def test_neither_number_nor_ramp(words, hollow, capsys):
    with pytest.raises(SystemExit):
        main(["sample", str(hollow), *words.split()])
    assert "allowed: a number, or START:END" in capsys.readouterr().err


def test_sample_tells_its_cost_to_who_watches(model, capsys, monkeypatch):
    assert main(["sample", str(model)]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["sample", str(model)]) == 0
    out, told = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "6 network evaluations, " in told and "site updates/s" in told


def test_infill_keeps_what_is_given_and_tells_its_cost_as_sample_does(tmp_path, capsys, monkeypatch):
    tokenizer = char_tokenizer(["abc "])
    backbone = MaskedConfig(width=8, depth=1, heads=1)
    config = GGMConfig(tokenizer.get_vocab_size(), ChainConfig(length=6, sweeps=2), backbone)
    GGM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / TOKENIZER).write_text(tokenizer.to_str())
    words = ["infill", str(tmp_path / "model"), "--text", "a__c", "--count", "3", "--batch", "2"]
    assert main(words) == 0
    out, told = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 3 and told == ""
    assert all(line.startswith("a") and line.endswith("c") for line in lines)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(words) == 0
    # Two batches, two sweeps, four positions: the gap, and what the model's length leaves.
    again, told = capsys.readouterr()
    assert again == out and "16 network evaluations, " in told and "site updates/s, " in told


@pytest.mark.parametrize(("text", "gap"), [("abc", "_"), ("a_c", "b"), ("", "_")])
def test_infill_without_a_gap_is_refused(text, gap, tmp_path, capsys):
    tokenizer = char_tokenizer(["abc_ "])
    config = GGMConfig(tokenizer.get_vocab_size(), ChainConfig(length=6, sweeps=2))
    GGM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / TOKENIZER).write_text(tokenizer.to_str())
    told = error(capsys, "infill", tmp_path / "model", "--text", text, "--gap", gap)
    assert told.strip().endswith(
        f"--text: got no gap, {gap!r}, in it; allowed: one or more (--gap tells of which)"
    )


def test_a_backend_that_is_not_there(model, monkeypatch, capsys):
    monkeypatch.setenv("GGM_KERNELS_BACKEND", "cuda")
    if torch.cuda.is_available():
        pytest.skip("it is there")
    told = error(capsys, "sample", model)
    assert "backend 'cuda' is not available" in told and "GGM_KERNELS_BACKEND" in told


@pytest.mark.parametrize(("backbone", "evaluations"), [("hollow", 12), ("masked", 6)])
def test_sites_per_step_that_the_model_has_learnt(backbone, evaluations, tmp_path):
    """A hollow network knows every one-site conditional, a masked one what its passes were."""
    make = HollowConfig(width=8, depth=1, mixing=1, heads=1)
    make = make if backbone == "hollow" else MaskedConfig(width=8, depth=1, heads=1)
    chain = ChainConfig(length=6, sweeps=2)
    GGM(GGMConfig(3, chain, make, masked_counts=(2, 6))).save_pretrained(tmp_path / "model")
    assert main(["sample", str(tmp_path / "model"), "--out", str(tmp_path / "x.npy")]) == 0
    record = json.loads((tmp_path / "x.npy.meta.json").read_text())
    assert record["network_evaluations"] == evaluations
