"""Tokenizers of images: square pictures to token grids, row by row, and back.

Each of them writes itself into a folder, beside the weights of a model, and `read_tokenizer` reads it
from there: a checkpoint tells how to draw what it samples.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from ggm.data.text import quiet_hub
from ggm.extras import require
from ggm.files import read_json, write_text
from ggm.progress import library_bars

IMAGES, WEIGHTS = "images.json", "vq"


class ImageTokenizer(Protocol):
    """What all tokenizers of images have.

    Attributes
    ----------
    size : int
        Pixels of a side.
    mode : str
        "RGB" or "L" (grey), as Pillow calls them.
    grid : tuple of int
        Rows and columns of tokens; each token stands for a rectangle of pixels.
    vocab_size : int
        Tokens V.
    """

    size: int
    mode: Literal["RGB", "L"]
    grid: tuple[int, int]
    vocab_size: int

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens, int64 [B, L], of pictures, uint8 [B, size, size, C]."""
        ...

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pictures, uint8 [B, size, size, C] on the CPU, of tokens, int64 [B, L]."""
        ...

    def save(self, folder: Path) -> None:
        """Write it into a folder, for `read_tokenizer`."""
        ...


class GreyLevels:
    """One token per pixel: its grey level, 0 (black) to levels - 1 (white).

    Parameters
    ----------
    size : int
        Pixels of a side.
    levels : int
        Grey levels.
    """

    mode: Literal["RGB", "L"] = "L"

    def __init__(self, size: int, levels: int) -> None:
        self.size, self.vocab_size, self.grid = size, levels, (size, size)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Nearest levels, int64 [B, L], of pictures, uint8 [B, size, size, 1]."""
        return (pixels.flatten(1) * ((self.vocab_size - 1) / 255)).round().long()

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pictures, uint8 [B, size, size, 1] on the CPU, of tokens, int64 [B, L]."""
        grey = (tokens * (255 / (self.vocab_size - 1))).round().to(torch.uint8)
        return grey.view(-1, self.size, self.size, 1).cpu()

    def save(self, folder: Path) -> None:
        """Write it into a folder, for `read_tokenizer`."""
        _write(folder, kind="grey", size=self.size, levels=self.vocab_size)


class VQTokenizer:
    """One token per vector of a `diffusers.VQModel`.

    Parameters
    ----------
    model : diffusers.VQModel
        The network.
    size : int
        Pixels of a side, a multiple of what the network divides sides by.
    normalize : bool
        Whether the network takes pixels in [-1, 1], as most do, or in [0, 1].

    Raises
    ------
    ValueError
        If the network does not take pictures of this size, or of neither 1 nor 3 channels.
    """

    def __init__(self, model: Any, size: int, normalize: bool = True) -> None:
        self.model, self.size, self.normalize = model.eval().requires_grad_(False), size, normalize
        # All levels but the last halve the sides.
        self.downsampling = 2 ** (len(model.config.block_out_channels) - 1)
        if size < 1 or size % self.downsampling:
            raise ValueError(
                f"size: got {size}; allowed: multiples of {self.downsampling}, as the VQModel downsamples"
            )
        channels = model.config.in_channels
        if channels not in (1, 3) or model.config.out_channels != channels:
            raise ValueError(f"VQModel: got {channels} channels; allowed: 1 or 3, in and out")
        self.mode: Literal["RGB", "L"] = "RGB" if channels == 3 else "L"
        self.grid = (size // self.downsampling, size // self.downsampling)
        self.vocab_size: int = model.config.num_vq_embeddings

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens, int64 [B, L] on the network's device, of pictures, uint8 [B, size, size, C]."""
        latents = self.model.encode(to_floats(pixels.to(self.model.device), self.normalize)).latents
        _, _, (_, _, tokens) = self.model.quantize(latents)
        return tokens.view(len(pixels), -1)

    @torch.inference_mode()
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pictures, uint8 [B, size, size, C] on the CPU, of tokens, int64 [B, L]."""
        shape = (len(tokens), *self.grid, self.model.quantize.vq_embed_dim)
        tokens = tokens.to(self.model.device)
        # Some models look the vectors up themselves, others want to be given them.
        by_model = self.model.config.lookup_from_codebook
        given = tokens if by_model else self.model.quantize.get_codebook_entry(tokens.flatten(), shape)
        floats = self.model.decode(given, force_not_quantize=True, shape=shape).sample
        return to_pixels(floats, self.normalize).cpu()

    def fingerprint(self) -> str:
        """Text that changes with weights, make and use of the network."""
        # Names with an underscore tell where the model came from.
        make = {key: value for key, value in self.model.config.items() if not key.startswith("_")}
        digest = hashlib.sha256(repr((self.size, self.normalize, sorted(make.items()))).encode())
        for name, values in self.model.state_dict().items():
            digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
            digest.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write it into a folder, for `read_tokenizer`; the network as diffusers does."""
        save_network(self.model, folder / WEIGHTS)
        _write(folder, kind="vq", size=self.size, normalize=self.normalize)


def save_network(model: Any, folder: Path) -> None:
    """Write a network into a folder as diffusers does.

    Raises
    ------
    OSError
        If it cannot be written: the library of the file format has an error of its own for a full disk.
    """
    try:
        model.save_pretrained(folder)
    except require("safetensors", extra="images").SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(folder)) from error


def to_floats(pixels: torch.Tensor, normalize: bool) -> torch.Tensor:
    """What a network takes, float32 [B, C, H, W], of pictures, uint8 [B, H, W, C]."""
    floats = pixels.movedim(-1, 1).to(torch.float32) / 255
    return floats * 2 - 1 if normalize else floats


def to_pixels(floats: torch.Tensor, normalize: bool) -> torch.Tensor:
    """Inverse of `to_floats`: what is out of range is cut, the rest rounded."""
    floats = (floats.float() + 1) / 2 if normalize else floats.float()
    return (floats.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1)


def open_vq(
    name: str, size: int, *, subfolder: str | None = None, normalize: bool = True, progress: bool = False
) -> VQTokenizer:
    """Tokenizer of a folder that diffusers wrote, or of a name on the Hugging Face Hub.

    Parameters
    ----------
    name : str
        Folder or name.
    size, normalize
        As in `VQTokenizer`.
    subfolder : str, optional
        Where in it the VQModel is.
    progress : bool
        Whether to show bars of what comes from the Hub.

    Raises
    ------
    FileNotFoundError
        If there is no VQModel.
    ValueError
        If it does not fit the size.
    MissingExtraError
        If diffusers is not installed.
    """
    diffusers = require("diffusers", extra="images")
    try:
        with warnings.catch_warnings(), quiet_hub(), library_bars(progress):
            # Of huggingface_hub, on how diffusers calls it.
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            model = diffusers.VQModel.from_pretrained(name, subfolder=subfolder)
    except (OSError, ValueError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{name}: no folder with a VQModel, and the Hub does not give it: {error}"
        ) from error
    return VQTokenizer(model, size, normalize)


def read_tokenizer(folder: Path, device: str | torch.device = "cpu") -> ImageTokenizer | None:
    """Tokenizer that was saved into a folder, or None if there is none.

    Raises
    ------
    OSError, ValueError
        If its files are damaged.
    """
    path = folder / IMAGES
    if not path.is_file():
        return None
    try:
        values = read_json(path)
        kind = values.pop("kind")
        if kind == "grey":
            return GreyLevels(**values)
        tokenizer = open_vq(str(folder / WEIGHTS), **values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not written by this package: {error}") from error
    tokenizer.model.to(device)
    return tokenizer


def remove_tokenizer(folder: Path) -> None:
    """Remove from a folder what `ImageTokenizer.save` wrote: a network without images.json is another's."""
    if not (folder / IMAGES).is_file():
        return
    (folder / IMAGES).unlink()
    network = folder / WEIGHTS
    if network.is_symlink():  # what it leads to may serve others
        network.unlink()
    else:
        shutil.rmtree(network, ignore_errors=True)


def _write(folder: Path, **values: Any) -> None:
    # Last of the files: if it is there, so are the others.
    write_text(folder / IMAGES, json.dumps(values))
