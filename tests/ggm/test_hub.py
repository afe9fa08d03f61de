import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from ggm import GGM, ChainConfig, GGMConfig, MaskedConfig, ObjectiveConfig
from ggm.hub import TRAINING, write_weights

CONFIG = GGMConfig(
    vocab_size=5,
    chain=ChainConfig(length=6, sweeps=3),
    backbone=MaskedConfig(width=16, depth=2, heads=2, positions="both", grid=(2, 3)),
    objective=ObjectiveConfig("marginal", candidates=2, noise_ratio=8.0),
    masked_counts=(1, 4),
    noise_probs=(0.4, 0.3, 0.1, 0.1, 0.1),
)
DATA = torch.randint(5, (9, 6), generator=torch.Generator().manual_seed(0))


def model(tied: bool = False) -> GGM:
    torch.manual_seed(0)
    backbone = dataclasses.replace(CONFIG.backbone, tied=tied)
    made = GGM(dataclasses.replace(CONFIG, backbone=backbone))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("tied", [False, True])
def test_exported_models_agree_and_train_further(tied, tmp_path):
    ours = model(tied)
    ours.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    loaded = GGM.from_pretrained(tmp_path)
    assert loaded.config == ours.config
    assert torch.equal(loaded.sample(4, seed=0).tokens, ours.sample(4, seed=0).tokens)
    loss = loaded.loss(DATA, 0, 0)
    assert torch.equal(loss, ours.loss(DATA, 0, 0))
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loss.backward()
    optimizer.step()
    assert loaded.loss(DATA, 0, 0) < loss
    if tied:
        assert loaded.backbone.head_weight is loaded.backbone.token.weight


def test_weights_without_averaging_lie_beside(tmp_path):
    model(tied=True).save_pretrained(tmp_path)
    raw = model(tied=True)
    with torch.no_grad():
        raw.backbone.bias.add_(1.0)
    write_weights(raw, tmp_path / TRAINING)
    averaged, training = (GGM.from_pretrained(tmp_path, weights=kind) for kind in ("averaged", "training"))
    assert torch.equal(training.backbone.bias, averaged.backbone.bias + 1.0)
    with pytest.raises(ValueError, match="allowed: averaged, training"):
        GGM.from_pretrained(tmp_path, weights="best")


def test_a_later_save_replaces_the_configuration(tmp_path):
    model().save_pretrained(tmp_path)
    other = GGM(dataclasses.replace(CONFIG, masked_counts=(2,)))
    other.save_pretrained(tmp_path)
    assert GGM.from_pretrained(tmp_path).config == other.config


def test_push_uploads_the_folder(monkeypatch):
    from huggingface_hub import hub_mixin

    uploaded = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, folder_path, **_):
            uploaded.update({path.name: path.read_bytes() for path in folder_path.iterdir()})
            return "there"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    assert model().push_to_hub("someone/digits") == "there"
    assert json.loads(uploaded["config.json"])["vocab_size"] == 5
    assert uploaded["model.safetensors"] and b"2405.17035" in uploaded["README.md"]


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vocab_size"], config["noise_probs"] = 7, None
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="not the weights of this model") as caught:
        GGM.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({**config, "colour": "red"}))
    with pytest.raises(ValueError, match="colour: unknown key"):
        GGM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"rubbish")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model\.safetensors: not the weights"):
        GGM.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        GGM.from_pretrained(tmp_path)


def test_without_the_hub_package_everything_but_the_hub_works():
    code = """
import sys
sys.modules.update(huggingface_hub=None, safetensors=None, accelerate=None, yaml=None, tokenizers=None, datasets=None)
from ggm import GGM, GGMConfig, ChainConfig
from ggm.extras import MissingExtraError
model = GGM(GGMConfig(3, ChainConfig(4)))
for call in (lambda: model.save_pretrained("x"), lambda: GGM.from_pretrained("x"), lambda: model.push_to_hub("x")):
    try:
        call()
    except MissingExtraError as error:
        assert str(error) == "huggingface_hub is not installed: pip install 'ggm-kernels[hub]'", error
    else:
        raise AssertionError
from ggm.cli import main
sys.exit(main(["train", sys.argv[1]]))
"""
    done = subprocess.run([sys.executable, "-c", code, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "ggm: error: yaml is not installed: pip install 'ggm-kernels[train]'\n"
