"""Tokens of images, made once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch

from ggm.data.images.files import Images, read_batches
from ggm.data.images.tokenizers import VQTokenizer
from ggm.draws import uniforms
from ggm.files import replacing
from ggm.progress import progress_bar
from ggm_kernels import Stream

_BATCH = 32
_ORDER_SEED = 0
# Part of the key: to be changed with anything that changes the tokens of the same pictures.
_VERSION = "2 lanczos"


def cached_tokens(
    images: Images,
    tokenizer: VQTokenizer,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Path:
    """File with the tokens of all pictures; made if it is not there.

    Parameters
    ----------
    images : Images
        Pictures. Their order in the file is random, and always the same: neighbours in a folder are
        often alike, and the first sequences are those held out.
    tokenizer : VQTokenizer
        What makes tokens of them; its network ends where it was.
    folder : Path
        Where files are kept, under names that tell pictures, size and network: of others none is
        ever taken.
    device : torch.device or str
        Where the network runs.
    progress : bool
        Whether to show a bar while it does.

    Returns
    -------
    Path
        A .npy file, uint16 or int32 [N, L].

    Raises
    ------
    OSError, ValueError
        If a picture cannot be read, or the file not be written. No half-written file is left.
    """
    keys = "\n".join([_VERSION, tokenizer.fingerprint(), images.fingerprint()])
    final = folder / f"{hashlib.sha256(keys.encode()).hexdigest()[:32]}.npy"
    if final.is_file():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    tokens = _tokens(images, tokenizer, device, progress)
    with replacing(final) as aside:
        numpy.save(aside, tokens)
    return final


def picture_order(count: int) -> torch.Tensor:
    """Which picture each row of the file is of, int64 [count]."""
    keys = uniforms(torch.arange(count), 1, stream=Stream.DATA_ORDER, seed=_ORDER_SEED)
    return keys[:, 0].argsort(stable=True)


def _tokens(
    images: Images, tokenizer: VQTokenizer, device: torch.device | str, progress: bool
) -> numpy.ndarray:
    height, width = tokenizer.grid
    small = tokenizer.vocab_size <= 2**16
    tokens = numpy.empty((len(images), height * width), dtype="uint16" if small else "int32")
    done = 0
    with (
        _moved(tokenizer.model, device),
        progress_bar(progress, len(images), "images to tokens", unit="image") as bar,
    ):
        for pixels in read_batches(
            images, picture_order(len(images)), tokenizer.size, tokenizer.mode, _BATCH
        ):
            tokens[done : done + len(pixels)] = tokenizer.encode(pixels).cpu().numpy()
            done += len(pixels)
            bar.update(len(pixels))
    return tokens


@contextmanager
def _moved(model: Any, device: torch.device | str) -> Iterator[None]:
    """Have a network on a device, and then back where it was, whatever happens."""
    before = model.device
    model.to(device)
    try:
        yield
    finally:
        model.to(before)
