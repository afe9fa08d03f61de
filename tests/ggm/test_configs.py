"""Every file in configs/ runs: two steps on a CPU, with everything but the data its own."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import draw_pictures, small_vq

from ggm import GGM
from ggm.commands.cli import main
from ggm.data.text import pydoc_documents
from ggm.training.checkpoints import find
from ggm.training.config import read_config
from ggm.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
IMAGES = {"celebahq-256": (16, 8192), "ffhq-256": (8, 4096)}
GPT2_TOKENS = 50257
# Of a batch of hundreds; there are two cores here, and no sets of a million documents or faces.
SMALL_BATCH = ["training.batch_size=2", "accumulation=2", "tracker=none"]
SHALLOW = ["model.backbone.width=64", "model.backbone.depth=2", "model.backbone.heads=4"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Overrides: documents of random words, and a vocabulary of words that is as large as GPT-2's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("text")
    words = [f"w{i}" for i in range(GPT2_TOKENS - 1)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    rng = random.Random(0)
    with open(folder / "documents.jsonl", "w") as file:
        for _ in range(600):
            file.write(json.dumps({"text": " ".join(rng.choices(words, k=rng.randint(100, 900)))}) + "\n")
    return [f"data.source={folder / 'documents.jsonl'}", f"data.tokenizer={folder / 'tokenizer.json'}"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Overrides by configuration: pictures, and a narrow network of the same downsampling and vocabulary."""
    folder = tmp_path_factory.mktemp("images")
    pictures = draw_pictures(folder / "pictures", 16, width=288, height=256)

    def overrides(name):
        downsampling, vocab_size = IMAGES[name]
        vq = small_vq(folder / name / "vqvae", downsampling=downsampling, vocab_size=vocab_size)
        return [
            f"data.source={pictures}",
            f"data.tokenizer={vq.parent}",
            f"data.cache={folder / 'cache'}",
            "data.held_out=4",
        ]

    return overrides


def trained(path: Path, out: Path, overrides: list[str]) -> GGM:
    # Samples to look at are as many network passes as the training of minutes.
    overrides = [f"out={out}", "samples=0", *overrides]
    words = [word for override in overrides for word in ("--set", override)]
    assert main(["train", str(path), *words, "--max-steps", "2", "--quiet"]) == 0
    losses = [line["loss"] for line in read_metrics(out / "metrics.jsonl")]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    return GGM.from_pretrained(find(out))


def test_every_configuration_is_tested_here():
    names = {path.stem for path in CONFIGS}
    assert names == {"digits", "own-text", "pydoc-char", "owt-small", "owt-medium", "owt-paper", *IMAGES}
    for path in CONFIGS:
        assert read_config(path).out == f"outputs/{path.stem}"


@pytest.mark.parametrize("name", ["digits", "pydoc-char"])
def test_small_configurations_run_as_they_are(name, tmp_path):
    model = trained(ROOT / "configs" / f"{name}.yaml", tmp_path / "run", ["tracker=none"])
    assert model.chain.length == 64


def test_the_configuration_of_own_text_runs_in_a_folder_of_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for i, document in enumerate(pydoc_documents()[:20]):
        Path(f"texts/{i}.txt").write_text(document)
    model = trained(ROOT / "configs" / "own-text.yaml", tmp_path / "run", ["tracker=none"])
    assert (model.chain.length, model.config.vocab_size) == (64, 512)


# owt-medium is owt-small but for its size.
@pytest.mark.parametrize(
    "name", ["owt-small", "owt-paper", pytest.param("owt-medium", marks=pytest.mark.slow)]
)
def test_text_configurations_run_with_fewer_layers(name, text, tmp_path):
    # Their own number of held-out sequences is more work than the training.
    path = ROOT / "configs" / f"{name}.yaml"
    model = trained(path, tmp_path / "run", [*text, *SMALL_BATCH, *SHALLOW, "data.held_out=4"])
    assert (model.config.vocab_size, model.chain.length) == (GPT2_TOKENS, 1024)


@pytest.mark.parametrize("name", IMAGES)
def test_image_configurations_run_with_fewer_layers(name, images, tmp_path):
    path = ROOT / "configs" / f"{name}.yaml"
    model = trained(path, tmp_path / "run", [*images(name), *SMALL_BATCH, *SHALLOW])
    downsampling, vocab_size = IMAGES[name]
    assert model.config.vocab_size == vocab_size
    assert model.chain.length == (256 // downsampling) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["owt-small", "owt-medium", "owt-paper", *IMAGES])
def test_configurations_run_in_full_size(name, text, images, tmp_path, capsys):
    """A process each, for its memory. With 509 million parameters owt-medium is three times owt-small."""
    # The 64 sequences of a look at held-out data alone are minutes of work here.
    data = [*(images(name) if name in IMAGES else text), "data.held_out=2"]
    overrides = [*data, *SMALL_BATCH, f"out={tmp_path / 'run'}"]
    words = [word for override in overrides for word in ("--set", override)]
    config = str(ROOT / "configs" / f"{name}.yaml")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ggm", "train", config, *words, "--max-steps", "2", "--quiet"]
    _, status, usage = os.wait4(subprocess.Popen(command, env=env).pid, 0)
    assert status == 0
    assert len(list(read_metrics(tmp_path / "run" / "metrics.jsonl"))) == 2
    shutil.rmtree(tmp_path / "run")
    with capsys.disabled():
        print(f"\n{name}: {usage.ru_maxrss / 2**20:.1f} GiB at most")


@pytest.mark.slow
def test_a_network_of_the_shape_of_amused_makes_the_tokens_of_its_configuration(tmp_path):
    """What configs/celebahq-256.yaml names, with random weights: 0.6 GB."""
    import diffusers

    from ggm.data.sources import ImageData, load_data

    diffusers.VQModel(
        block_out_channels=(128, 256, 256, 512, 768),
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        layers_per_block=2,
        latent_channels=64,
        num_vq_embeddings=8192,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
        force_upcast=True,
    ).save_pretrained(tmp_path / "vqvae")
    pictures = draw_pictures(tmp_path / "pictures", 3, width=256, height=256)
    config = read_config(ROOT / "configs" / "celebahq-256.yaml").data
    assert isinstance(config, ImageData)
    config = ImageData(
        str(pictures),
        str(tmp_path),
        config.size,
        subfolder=config.subfolder,
        normalize=config.normalize,
        cache=str(tmp_path / "cache"),
        held_out=1,
    )
    data = load_data(config, 256)
    assert data.images is not None
    assert (data.vocab_size, data.held_out.shape) == (8192, (1, 256))
    assert data.images.decode(data.held_out).shape == (1, 256, 256, 3)
