"""What tokens mean travels with the weights, and samples are texts or pictures; model cards."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from pictures import SIZE
from small_runs import trained

from ggm import GGM, ChainConfig, GGMConfig, HollowConfig
from ggm.data.images.tokenizers import GreyLevels, open_vq
from ggm.data.text import char_tokenizer
from ggm.data.vocabulary import Vocabulary
from ggm.model_card import Training, model_card
from ggm.training.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
TOKENIZER = char_tokenizer(["abc <&"])


def model(vocab_size: int, length: int, vocabulary: Vocabulary) -> GGM:
    backbone = HollowConfig(width=8, depth=1, mixing=1, heads=1)
    torch.manual_seed(0)
    made = GGM(GGMConfig(vocab_size, ChainConfig(length, sweeps=1), backbone))
    made.vocabulary = vocabulary
    return made


def text_model() -> GGM:
    return model(TOKENIZER.get_vocab_size(), 9, Vocabulary(TOKENIZER))


def test_a_tokenizer_travels_with_the_weights(tmp_path):
    ours = text_model()
    ours.save_pretrained(tmp_path / "a")
    loaded = GGM.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    loaded.save_pretrained(tmp_path / "a")  # over itself
    for folder in ("a", "b"):
        again = GGM.from_pretrained(tmp_path / folder)
        samples = again.sample(3, seed=0)
        assert samples.text == ours.sample(3, seed=0).text and samples.images is None
        assert samples.text == [
            TOKENIZER.decode(row, skip_special_tokens=False) for row in samples.tokens.tolist()
        ]
    tokens = torch.zeros(2, 9, dtype=torch.int64)
    filled = again.infill(tokens, torch.arange(9).expand(2, -1) < 4, seed=0)
    assert filled.text is not None and all(
        text.startswith(TOKENIZER.decode([0] * 4, skip_special_tokens=False)) for text in filled.text
    )
    assert again.sample(0, seed=0).text == []


def test_the_tokenizer_of_a_folder_is_read_when_it_is_asked_for(tmp_path):
    text_model().save_pretrained(tmp_path)
    code = """
import sys
sys.modules["tokenizers"] = None
from ggm import GGM
from ggm.extras import MissingExtraError
model = GGM.from_pretrained(sys.argv[1])
samples = model.sample(1, seed=0)
model.save_pretrained(sys.argv[2])
try:
    samples.text
except MissingExtraError:
    print(repr(samples))
"""
    words = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "b")]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert told.startswith("SampleResult(1 sequences of 9 tokens, 9 network evaluations")
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_levels_and_networks_travel_with_the_weights(tmp_path, vq):
    pytest.importorskip("diffusers")
    network = open_vq(str(vq), SIZE)
    rows, columns = network.grid
    for name, vocab_size, length, images in (
        ("grey", 4, 64, GreyLevels(8, 4)),
        ("vq", network.vocab_size, rows * columns, network),
    ):
        model(vocab_size, length, Vocabulary(images=images)).save_pretrained(tmp_path / name)
        GGM.from_pretrained(tmp_path / name).save_pretrained(tmp_path / f"{name}-again")
        samples = GGM.from_pretrained(tmp_path / f"{name}-again").sample(2, seed=0)
        assert samples.text is None and torch.equal(samples.images, images.decode(samples.tokens))
        assert samples.images.shape[0] == 2 and samples.images.dtype == torch.uint8


def vocabulary_files(folder):
    paths = [folder / "tokenizer.json", folder / "images.json", *(folder / "vq").rglob("*")]
    return {path.relative_to(folder): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture
def models(vq):
    """Models, by the kinds of their vocabularies."""
    pytest.importorskip("diffusers")
    network = open_vq(str(vq), SIZE)
    return {
        "text": text_model(),
        "grey": model(4, 64, Vocabulary(images=GreyLevels(8, 4))),
        "vq": model(network.vocab_size, network.grid[0] ** 2, Vocabulary(images=network)),
        "none": model(3, 4, Vocabulary()),
    }


@pytest.mark.parametrize("read", [False, True], ids=["made", "read"])
def test_the_vocabulary_of_another_model_goes(read, models, tmp_path):
    for name, ours in models.items():
        ours.save_pretrained(tmp_path / name)
    for name, ours in models.items():
        written = vocabulary_files(tmp_path / name)
        for other in models:
            folder = tmp_path / "over"
            shutil.copytree(tmp_path / other, folder)
            (GGM.from_pretrained(tmp_path / name) if read else ours).save_pretrained(folder)
            assert vocabulary_files(folder) == written
            assert {path.name.startswith(".") for path in folder.iterdir()} == {False}
            assert (folder / "vq").exists() == (name == "vq")
            shutil.rmtree(folder)


def test_a_vocabulary_stays_until_the_next_is_whole(models, tmp_path, monkeypatch):
    """Saved over the folder that its network came from, it would be lost."""
    folder = tmp_path / "vq"
    models["vq"].save_pretrained(folder)
    before = vocabulary_files(folder)
    models["vq"].vocabulary = Vocabulary(images=GGM.from_pretrained(folder).vocabulary.images)

    def half(self, to):
        (to / "config.json").parent.mkdir(parents=True, exist_ok=True)
        (to / "config.json").write_text("{")
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(type(models["vq"].vocabulary.images.model), "save_pretrained", half)
        with pytest.raises(OSError, match="no space left"):
            models["vq"].save_pretrained(folder)
    assert vocabulary_files(folder) == before and not list(folder.glob(".*"))
    models["vq"].save_pretrained(folder)
    assert vocabulary_files(folder).keys() == before.keys() and not list(folder.glob(".*"))


@pytest.mark.parametrize(("source", "over"), [("links", "whole"), ("whole", "links"), ("grey", "links")])
def test_a_network_that_folders_share_is_not_lost(source, over, models, tmp_path):
    models["grey"].save_pretrained(tmp_path / "grey")
    models["vq"].save_pretrained(tmp_path / "whole")
    network = vocabulary_files(tmp_path / "whole")
    models["vq"].save_pretrained(tmp_path / "links")
    shutil.rmtree(tmp_path / "links" / "vq")
    (tmp_path / "links" / "vq").symlink_to(tmp_path / "whole" / "vq")
    GGM.from_pretrained(tmp_path / source).save_pretrained(tmp_path / over)
    assert vocabulary_files(tmp_path / "whole") == network
    assert source == "grey" or vocabulary_files(tmp_path / "links") == network


def test_a_network_that_no_save_put_there_stays(models, vq, tmp_path):
    shutil.copytree(vq, tmp_path / "vq")
    for name in ("text", "none", "grey"):
        models[name].save_pretrained(tmp_path)
        (tmp_path / "images.json").unlink(missing_ok=True)
    assert {path.name for path in (tmp_path / "vq").iterdir()} == {path.name for path in vq.iterdir()}


def test_notebooks_show_texts_and_pictures():
    samples = text_model().sample(2, seed=0)
    shown = samples._repr_html_()
    assert shown.count("<li>") == 2 and "site updates" in shown
    assert "&lt;" in "".join(text_model().sample(64, seed=1)._repr_html_())
    digits = model(4, 64, Vocabulary(images=GreyLevels(8, 4))).sample(2, seed=0)
    assert "data:image/png;base64,iVBOR" in digits._repr_html_()
    plain = model(4, 64, Vocabulary()).sample(2, seed=0)
    assert plain.text is plain.images is None
    assert plain._repr_html_() == f"<div><p>{plain!r}</p></div>"
    assert repr(plain).startswith("SampleResult(2 sequences of 64 tokens, 64 network evaluations, 128 site")


def test_a_run_folder_is_its_last_checkpoint(tmp_path):
    trained(tmp_path, "samples=2")
    last = Checkpoints(tmp_path / "run" / "checkpoints", 2).latest()
    of_run, of_checkpoint = GGM.from_pretrained(tmp_path / "run"), GGM.from_pretrained(last)
    assert of_run.sample(1, seed=0).images.shape == (1, 8, 8, 1)
    for ours, theirs in zip(of_run.parameters(), of_checkpoint.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(FileNotFoundError, match="nor that of a run"):
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        (tmp_path / "run" / "checkpoints").mkdir()
        GGM.from_pretrained(tmp_path / "run")


def test_cards_tell_of_the_run_and_go_to_the_hub(tmp_path, monkeypatch):
    from huggingface_hub import ModelCard, hub_mixin

    trained(tmp_path, "samples=2")
    last = Checkpoints(tmp_path / "run" / "checkpoints", 2).latest()
    card = (last / "README.md").read_text()
    progress = json.loads((last / "progress.json").read_text())
    assert "| kind | `digits` |" in card and f"| held_out_loss | {progress['held_out_loss']:.5g} |" in card
    assert "| steps | 12 |" in card and "![samples](samples.png)" in card
    assert (last / "samples.png").read_bytes() == (
        tmp_path / "run" / "samples" / "step-000000012.png"
    ).read_bytes()
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, folder_path, **_):
            uploaded.update({path.name: path.read_bytes() for path in folder_path.iterdir()})

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    loaded = GGM.from_pretrained(tmp_path / "run")
    loaded.push_to_hub("someone/digits")
    pushed = uploaded["README.md"].decode()
    assert 'GGM.from_pretrained("someone/digits")' in pushed and "| steps | 12 |" in pushed
    assert uploaded["images.json"] and uploaded["samples.png"]
    assert ModelCard(pushed).data.to_dict()["library_name"] == "ggm-kernels"


def test_a_card_of_text():
    training = Training({"kind": "text", "end": None}, {"held_out_loss": 1.23456789}, ["one\ntwo", "three"])
    card = model_card(text_model().config.to_dict(), 1234, "text", training, "someone/words")
    assert "# words\n" in card and "1,234 parameters" in card and "print(samples.text)" in card
    assert "| kind | `text` |" in card and "end" not in card.partition("## Data")[2]
    assert "| held_out_loss | 1.2346 |" in card and "\n    one\n    two\n\n    three\n" in card
    plain = model_card(text_model().config.to_dict(), 1, None, None, "x")
    assert "## Data" not in plain and "samples.tokens" in plain


def test_a_vocabulary_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.json: got \d tokens; allowed: 3"):
        Vocabulary(TOKENIZER).check(3, 9, tmp_path)
    with pytest.raises(
        ValueError, match=r"images\.json: got 4 tokens on a grid of 8 x 8; allowed: 4 tokens, 9"
    ):
        Vocabulary(images=GreyLevels(8, 4)).check(4, 9, tmp_path)
