"""`ggm demo --web`: a page on which a chain fills the gaps of a text, or a hole painted into an image."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy
import torch

from ggm.commands.checkpoint import Checkpoint
from ggm.commands.drawing import Given
from ggm.commands.infill import given_text
from ggm.data.digits import SIDE, load_digits
from ggm.data.images.masks import frozen_tokens, show_hole
from ggm.data.images.tokenizers import GreyLevels, ImageTokenizer
from ggm.extras import require
from ggm.model import GGM
from ggm.sampling.config import SamplingConfig

GAP = "_"
_FRAMES = 48
# Pixels of a side that pictures are shown with, at least.
_SHOWN = 320
_TEXT = "The ______ statement is used to ____ a name."
_HEAD = """# Glauber dynamics, backwards
Noise becomes data, one position at a time. What you give stays; what you leave open is drawn."""


def serve(checkpoint: Checkpoint, port: int) -> None:
    """Show the page of a model until Ctrl-C.

    Raises
    ------
    MissingExtraError
        If gradio is not installed.
    OSError
        If the port is taken.
    """
    launch(make_page(checkpoint), port)


def launch(page: Any, port: int | None, **options: Any) -> None:
    """Serve a page of `make_page` to this machine, at a free port if none is named."""
    themes = require("gradio", extra="web").themes
    # Fonts of the system: the page asks no other host for anything.
    theme = themes.Default(font=["sans-serif"], font_mono=["monospace"])
    page.queue().launch(server_name="127.0.0.1", server_port=port, show_error=True, theme=theme, **options)


def make_page(checkpoint: Checkpoint) -> Any:
    """Page of a model of text or of images, gradio.Blocks.

    Raises
    ------
    MissingExtraError
        If gradio is not installed.
    ValueError
        If the model is of neither.
    """
    gradio = require("gradio", extra="web")
    if checkpoint.tokenizer is None and checkpoint.images is None:
        raise ValueError("checkpoint: got a model without tokenizer; allowed: one of text or of images")
    with gradio.Blocks(title="GGM", analytics_enabled=False) as page:
        gradio.Markdown(_HEAD)
        if checkpoint.tokenizer is not None:
            _text_part(gradio, checkpoint)
        else:
            _image_part(gradio, checkpoint)
    return page


def _settings(gradio: Any) -> tuple[Any, Any]:
    with gradio.Row():
        seed = gradio.Number(label="Seed", value=0, precision=0, minimum=0, elem_id="seed")
        temperature = gradio.Slider(0.1, 1.5, value=0.9, step=0.05, label="Temperature")
    return seed, temperature


def _text_part(gradio: Any, checkpoint: Checkpoint) -> None:
    given = gradio.Textbox(_TEXT, label=f"Text: every {GAP} is a token to be drawn", elem_id="given")
    seed, temperature = _settings(gradio)
    button = gradio.Button("Fill in", variant="primary", elem_id="draw")
    time = gradio.Textbox(label="Chain time", interactive=False, elem_id="time")
    drawn = gradio.Textbox(label="Drawn", lines=4, interactive=False, elem_id="drawn")

    def fill_in(text: str, seed: float, temperature: float) -> Iterator[tuple[str, str]]:
        try:
            yield from fill_text(checkpoint, text, int(seed), temperature)
        except ValueError as error:
            raise gradio.Error(str(error)) from error

    button.click(fill_in, [given, seed, temperature], [time, drawn], api_name="fill")


def _image_part(gradio: Any, checkpoint: Checkpoint) -> None:
    images = checkpoint.images
    assert images is not None
    example = gradio.State(0)
    with gradio.Row():
        editor = gradio.ImageEditor(
            picture_of(images, 0),
            label="Paint over what is to be drawn",
            type="numpy",
            brush=gradio.Brush(default_size=_SHOWN // 8, colors=["#c1440e"], color_mode="fixed"),
            elem_id="editor",
        )
        drawn = gradio.Image(label="Drawn", interactive=False, height=_SHOWN, elem_id="drawn")
    seed, temperature = _settings(gradio)
    with gradio.Row():
        button = gradio.Button("Draw what is painted over", variant="primary", elem_id="draw")
        lower = gradio.Button("Draw the lower half", elem_id="lower")
        other = gradio.Button("Another picture", elem_id="other")
    time = gradio.Textbox(label="Chain time", interactive=False, elem_id="time")

    def fill_in(value: Any, seed: float, temperature: float, half: bool) -> Iterator[tuple[str, Any]]:
        try:
            pixels, hole = _read(images, value)
            if half:
                hole = torch.arange(images.size)[:, None].expand(-1, images.size) >= images.size // 2
            yield from fill_image(checkpoint, pixels, hole, int(seed), temperature)
        except ValueError as error:
            raise gradio.Error(str(error)) from error

    def painted(value: Any, seed: float, temperature: float) -> Iterator[tuple[str, Any]]:
        yield from fill_in(value, seed, temperature, half=False)

    def lower_half(value: Any, seed: float, temperature: float) -> Iterator[tuple[str, Any]]:
        yield from fill_in(value, seed, temperature, half=True)

    inputs = [editor, seed, temperature]
    button.click(painted, inputs, [time, drawn], api_name="fill")
    lower.click(lower_half, inputs, [time, drawn], api_name="lower_half")
    other.click(lambda i: (i + 1, picture_of(images, i + 1)), [example], [example, editor], api_name="other")


def picture_of(images: ImageTokenizer, number: int) -> numpy.ndarray:
    """A picture to begin with: a digit that was held out, or a plain grey for other images."""
    if isinstance(images, GreyLevels) and images.size == SIDE and images.vocab_size <= 17:
        held_out = load_digits(images.vocab_size).held_out
        return _enlarged(images.decode(held_out[number % len(held_out)][None])[0])
    channels = 3 if images.mode == "RGB" else 1
    return _enlarged(torch.full((images.size, images.size, channels), 128, dtype=torch.uint8))


def fill_text(checkpoint: Checkpoint, text: str, seed: int, temperature: float) -> Iterator[tuple[str, str]]:
    """Chain time and text at each of some steps, while the gaps of a text are drawn.

    Raises
    ------
    ValueError
        As `ggm.commands.infill.given_text`.
    """
    given, length = given_text(checkpoint, text, GAP)
    for time, tokens in frames(checkpoint.model, given, seed, temperature):
        texts = checkpoint.texts(tokens[None, :length])
        assert texts is not None
        yield f"t = {time}", texts[0]


def fill_image(
    checkpoint: Checkpoint, pixels: torch.Tensor, hole: torch.Tensor, seed: int, temperature: float
) -> Iterator[tuple[str, numpy.ndarray]]:
    """Chain time and picture at each of some steps, while a hole is drawn; the first shows the hole.

    Parameters
    ----------
    checkpoint : Checkpoint
        A model of images.
    pixels : torch.Tensor
        Picture, uint8 [size, size, C].
    hole : torch.Tensor
        bool [size, size]: what is to be drawn.
    seed, temperature
        Of the draws.
    """
    images = checkpoint.images
    assert images is not None
    given = Given(images.encode(pixels[None])[0].cpu(), frozen_tokens(images, hole))
    yield "the hole", _enlarged(show_hole(images, images.decode(given.tokens[None]), given.frozen)[0])
    for time, tokens in frames(checkpoint.model, given, seed, temperature):
        yield f"t = {time}", _enlarged(images.decode(tokens[None])[0])


def frames(model: GGM, given: Given, seed: int, temperature: float) -> Iterator[tuple[int, torch.Tensor]]:
    """Chain time and tokens [L] at about 48 steps of one chain, while it runs, and at the last one.

    An error of the chain is raised here.
    """
    states: queue.Queue[tuple[int, torch.Tensor] | BaseException | None] = queue.Queue()
    device = model.backbone.head_bias.device
    config = SamplingConfig(sites_per_step=model.config.least_sites, temperature=temperature)
    every = max(1, math.ceil(model.chain.steps / config.sites_per_step / _FRAMES))
    counted = 0

    def observe(time: int, tokens: torch.Tensor) -> None:
        nonlocal counted
        if counted % every == 0:
            states.put((time, tokens[0].cpu().clone()))
        counted += 1

    def draw() -> None:
        try:
            tokens, frozen = given.tokens.to(device)[None], given.frozen.to(device)[None]
            result = model.infill(tokens, frozen, config, seed=seed, observe=observe)
            states.put((0, result.tokens[0].cpu()))
            states.put(None)
        except BaseException as error:
            states.put(error)

    threading.Thread(target=draw, daemon=True).start()
    while (state := states.get()) is not None:
        if isinstance(state, BaseException):
            raise state
        yield state


def _read(images: ImageTokenizer, value: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture, uint8 [size, size, C], and what is painted over, bool [size, size], of gradio's editor."""
    if value is None or value.get("background") is None:
        raise ValueError("image: got none; allowed: a picture, and something painted over")
    pixels = _small(images.size, value["background"][..., :3], images.mode)
    hole = torch.zeros(images.size, images.size, dtype=torch.bool)
    for layer in value["layers"]:
        # A stroke counts where it covers half of what a pixel of the model's images is.
        hole |= _small(images.size, layer[..., 3], "L")[..., 0] >= 128
    return pixels, hole


def _small(size: int, values: numpy.ndarray, mode: str) -> torch.Tensor:
    """The middle of a picture, uint8 [size, size, C], each pixel the mean of those that it stands for."""
    image, operations = (require(f"PIL.{name}", extra="images") for name in ("Image", "ImageOps"))
    picture = image.fromarray(numpy.ascontiguousarray(values)).convert(mode)
    small = operations.fit(picture, (size, size), method=image.Resampling.BOX)
    return torch.tensor(numpy.asarray(small)).view(size, size, -1)


def _enlarged(pixels: torch.Tensor) -> numpy.ndarray:
    scale = max(1, _SHOWN // len(pixels))
    large = pixels.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    return large.expand(-1, -1, 3).numpy() if large.shape[-1] == 1 else large.numpy()
