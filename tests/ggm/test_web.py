"""The page of `ggm demo --web`: gaps of a text and holes in a digit are filled, and what is given stays."""

import importlib.util
import os
import shutil
import sys

import numpy
import pytest
import torch
from PIL import Image

from ggm import GGM, ChainConfig, GGMConfig, HollowConfig, SamplingConfig
from ggm.commands import demo
from ggm.commands.cli import main
from ggm.data.digits import load_digits
from ggm.data.images.tokenizers import GreyLevels
from ggm.data.text import char_tokenizer
from ggm.data.vocabulary import Vocabulary

TOKENIZER = char_tokenizer(["the cat sat on a mat. "])
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason="no chromium, or no playwright"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models of text and of digits, their weights random."""
    folder = tmp_path_factory.mktemp("web")
    made = {
        "text": (TOKENIZER.get_vocab_size(), 24, Vocabulary(TOKENIZER)),
        "digits": (4, 64, Vocabulary(images=GreyLevels(8, 4))),
        "tokens": (5, 6, Vocabulary()),
    }
    for name, (vocab_size, length, vocabulary) in made.items():
        torch.manual_seed(0)
        backbone = HollowConfig(width=8, depth=1, mixing=1, heads=1)
        model = GGM(GGMConfig(vocab_size, ChainConfig(length, sweeps=2), backbone))
        model.vocabulary = vocabulary
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture
def opened(folders):
    pytest.importorskip("gradio")
    from ggm.commands.checkpoint import Checkpoint

    return lambda name: Checkpoint.open(folders / name)


@pytest.fixture
def served(opened):
    """Serve a page of a model; gives its address."""
    from ggm.commands import web

    pages = []

    def serve(name: str) -> str:
        page = web.make_page(opened(name))
        web.launch(page, None, prevent_thread_lock=True, quiet=True)
        pages.append(page)
        return page.local_url

    yield serve
    for page in pages:
        page.close()


def test_without_gradio_it_is_told_what_to_install(folders, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--web", "--checkpoint", str(folders / "text")]) == 1
    assert capsys.readouterr().err == "ggm: error: gradio is not installed: pip install 'ggm-kernels[web]'\n"


def test_flags_that_do_not_go_together(folders, capsys):
    assert main(["demo", "--checkpoint", str(folders / "text")]) == 1
    assert "--checkpoint: got a folder without --web" in capsys.readouterr().err
    assert main(["demo", "--web", "--port", "0"]) == 1
    assert "--port: got 0; allowed: 1 to 65535" in capsys.readouterr().err


def test_it_trains_only_where_there_is_no_model(folders, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    from ggm.commands import digits_demo, web

    shown, trained = [], []

    def train(config):
        trained.append(config.model)
        shutil.copytree(folders / "digits", config.model)

    monkeypatch.setattr(digits_demo, "run", train)
    monkeypatch.setattr(web, "serve", lambda checkpoint, port: shown.append((checkpoint.folder, port)))
    words, model = ["demo", "--web", "--out", str(tmp_path / "demo")], tmp_path / "demo" / "model"
    assert main([*words, "--port", "9"]) == main(words) == 0
    assert main([*words, "--checkpoint", str(folders / "text")]) == 0
    assert shown == [(model, 9), (model, 7860), (folders / "text", 7860)]
    assert trained == [model]


def test_gaps_are_drawn_and_frames_are_those_of_one_chain(opened):
    from ggm.commands.web import fill_text

    checkpoint = opened("text")
    frames = list(fill_text(checkpoint, "the ___ sat", 3, 0.9))
    assert 10 < len(frames) <= 49 and frames[-1][0] == "t = 0"
    assert frames[0][0] == f"t = {checkpoint.model.chain.steps}"
    texts = [text for _, text in frames]
    assert len(set(texts)) > 3
    for text in texts:
        assert text.startswith("the ") and text.endswith(" sat")
    tokens = TOKENIZER.encode("the aaa sat").ids
    given = torch.tensor([*tokens, *[0] * (24 - len(tokens))])
    frozen = torch.tensor([i in (0, 1, 2, 3, 7, 8, 9, 10) for i in range(24)])
    config = SamplingConfig(temperature=0.9)
    last = checkpoint.model.infill(given[None], frozen[None], config, seed=3)
    assert texts[-1] == TOKENIZER.decode(last.tokens[0, :11].tolist(), skip_special_tokens=False)
    with pytest.raises(ValueError, match="got no gap"):
        list(fill_text(checkpoint, "the cat", 0, 1.0))


def test_a_painted_hole_is_drawn_and_the_rest_stays(opened):
    from ggm.commands import web

    checkpoint = opened("digits")
    images = checkpoint.images
    background = web.picture_of(images, 5)
    assert background.shape == (320, 320, 3)
    paint = numpy.zeros((320, 320, 4), numpy.uint8)
    paint[160:, :80] = 255  # the lower left quarter: rows 4 to 7, columns 0 and 1
    pixels, hole = web._read(images, {"background": background, "layers": [paint], "composite": background})
    real = images.decode(load_digits(4).held_out[5][None])[0]
    assert torch.equal(pixels, real)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:, :2] = True
    assert torch.equal(hole, expected)
    shown = list(web.fill_image(checkpoint, pixels, hole, 0, 1.0))
    last = torch.from_numpy(shown[-1][1].copy())[::40, ::40, 0]
    assert shown[0][0] == "the hole" and shown[-1][0] == "t = 0"
    assert torch.equal(last[~hole], real[..., 0][~hole]) and not torch.equal(last, real[..., 0])
    with pytest.raises(ValueError, match="no white pixel"):
        list(web.fill_image(checkpoint, pixels, torch.zeros(8, 8, dtype=torch.bool), 0, 1.0))
    with pytest.raises(ValueError, match="got a model without tokenizer"):
        web.make_page(opened("tokens"))


def test_an_error_of_the_chain_is_raised_on_the_page(opened, monkeypatch):
    from ggm.commands.web import fill_text

    checkpoint = opened("text")
    monkeypatch.setattr(GGM, "infill", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(fill_text(checkpoint, "the ___ sat", 3, 0.9))


def test_the_page_answers_a_client(served):
    from gradio_client import Client

    client = Client(served("text"), verbose=False)
    time, text = client.predict("the ___ sat", 3, 0.9, api_name="/fill")
    assert time == "t = 0" and text.startswith("the ") and text.endswith(" sat")


@needs_browser
def test_text_in_a_browser(served):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        address = served("text")
        page.goto(address)
        page.locator("#given textarea").fill("the ___ sat")
        page.locator("#draw").click()
        page.wait_for_function("document.querySelector('#time textarea, #time input').value == 't = 0'")
        drawn = page.locator("#drawn textarea").input_value()
        assert drawn.startswith("the ") and drawn.endswith(" sat") and "_" not in drawn
        assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked
        _keep(page, "text")
        browser.close()


@pytest.mark.slow  # on a busy machine the editor may take its time, and the stroke is lost
@needs_browser
def test_painting_in_a_browser(served):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1000})
        page.goto(served("digits"))
        canvas = page.locator("#editor canvas").first
        canvas.wait_for()
        page.wait_for_timeout(1000)  # it grows into place
        box = canvas.bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 40, middle[1] + 40, steps=8)
        page.mouse.up()
        page.locator("#draw").click()
        page.wait_for_function("document.querySelector('#time textarea, #time input').value == 't = 0'")
        page.locator("#drawn img").wait_for()
        _keep(page, "digits")
        browser.close()


def _keep(page, name: str) -> None:
    """Leave a picture of the page where one is asked for, to be looked at."""
    if folder := os.environ.get("GGM_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)
        assert Image.open(f"{folder}/{name}.png").width > 0


def test_help_needs_no_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    assert "--web" in capsys.readouterr().out and demo.FLAGS
