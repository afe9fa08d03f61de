"""`ggm train-vq`: a small VQModel of diffusers, trained on pictures of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import mse_loss

from ggm.data.batches import index_batches
from ggm.data.images.files import Images, check_pictures, read_batches
from ggm.data.images.pictures import write_grid
from ggm.data.images.tokenizers import VQTokenizer, save_network, to_floats
from ggm.extras import require
from ggm.files import filling
from ggm.progress import progress_bar
from ggm.training.config import TrainingConfig
from ggm.training.optimizer import set_learning_rate
from ggm.training.vq_config import GROUPS, VQConfig

RECONSTRUCTIONS = "reconstructions.png"
_SHOWN = 8


@dataclass(frozen=True)
class VQResult:
    """What a training gives.

    Attributes
    ----------
    tokenizer : VQTokenizer
        With the trained network.
    losses : list of float
        Mean squared error of pixels in [-1, 1] at every step.
    used : int
        Vectors of the codebook that the last tenth of the training used.
    """

    tokenizer: VQTokenizer
    losses: list[float]
    used: int


def make_vq(config: VQConfig) -> Any:
    """A new `diffusers.VQModel` of a configuration."""
    levels = config.downsampling.bit_length()
    return require("diffusers", extra="images").VQModel(
        in_channels=1 if config.grey else 3,
        out_channels=1 if config.grey else 3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.width * (1 if level == 0 else 2) for level in range(levels)),
        layers_per_block=1,
        latent_channels=config.latent_channels,
        sample_size=config.size,
        num_vq_embeddings=config.vocab_size,
        norm_num_groups=GROUPS,
        mid_block_add_attention=False,
    )


def train_vq(
    images: Images, config: VQConfig, *, device: torch.device | str = "cpu", progress: bool = False
) -> VQResult:
    """Train a VQModel to reconstruct pictures.

    Parameters
    ----------
    images : Images
        At least as many as a batch.
    config : VQConfig
        The model and its training.
    device : torch.device or str
        Where.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    VQResult
        The network is on the CPU.

    Raises
    ------
    OSError, ValueError
        If a picture cannot be read, or there are too few.

    Notes
    -----
    Source: the loss, squared error of pixels, of the codebook, and a quarter of it as commitment,
    is that of arXiv 1711.00937. That the codebook starts from encoded pictures is common practice.
    """
    if len(images) < config.batch_size:
        raise ValueError(
            f"batch_size: got {config.batch_size}; allowed: up to the {len(images)} images there are"
        )
    torch.manual_seed(config.seed)
    model = make_vq(config).to(device)
    check_pictures(images, config.size, "L" if config.grey else "RGB", progress=progress)
    model.quantize.legacy = False  # else it weighs commitment and codebook the other way round
    tokenizer = VQTokenizer(model, config.size)
    model.train().requires_grad_(True)
    schedule = TrainingConfig(steps=config.steps, learning_rate=config.learning_rate)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    batches = index_batches(len(images), config.batch_size, seed=config.seed)
    used = torch.zeros(config.vocab_size, dtype=torch.bool, device=device)
    losses: list[float] = []
    with progress_bar(progress, config.steps, "training") as bar:
        for step in range(config.steps):
            (pixels,) = read_batches(images, next(batches), config.size, tokenizer.mode, config.batch_size)
            floats = to_floats(pixels.to(device), normalize=True)
            latents = model.encode(floats).latents
            if step == 0:
                _start_codebook(model, latents)
            quantized, vq_loss, (_, _, tokens) = model.quantize(latents)
            reconstruction = mse_loss(model.decode(quantized, force_not_quantize=True).sample, floats)
            set_learning_rate(optimizer, schedule, step / config.steps)
            optimizer.zero_grad(set_to_none=True)
            (reconstruction + vq_loss).backward()
            optimizer.step()
            used[tokens.flatten()] |= step >= 0.9 * config.steps - 1
            losses.append(float(reconstruction.detach()))
            bar.set_postfix_str(f"error {losses[-1]:.4f}", refresh=False)
            bar.update()
    model.to("cpu").eval().requires_grad_(False)
    return VQResult(tokenizer, losses, int(used.sum()))


@torch.no_grad()
def _start_codebook(model: Any, latents: torch.Tensor) -> None:
    """Put the vectors where latents [B, C, h, w] are: elsewhere, most of them are never used."""
    codebook = model.quantize.embedding.weight
    found = latents.movedim(1, -1).flatten(0, 2)
    chosen = torch.linspace(0, len(found) - 1, len(codebook), device=found.device).round().long()
    codebook.copy_(found[chosen])


def save_vq(result: VQResult, images: Images, out: Path) -> None:
    """Write the network as diffusers does, and a picture: images above, reconstructions below.

    Raises
    ------
    OSError
        If the folder cannot be written to. What was there is as it was.
    """
    tokenizer = result.tokenizer
    count = min(_SHOWN, len(images))
    shown = torch.linspace(0, len(images) - 1, count).round().long()
    (pixels,) = read_batches(images, shown, tokenizer.size, tokenizer.mode, _SHOWN)
    rows = torch.cat([pixels, tokenizer.decode(tokenizer.encode(pixels))])
    with filling(out) as aside:
        write_grid(aside / RECONSTRUCTIONS, rows, columns=count)
        save_network(tokenizer.model, aside)
