"""Images against a reference set: FID, Frechet distance of raw pixels, copies."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from ggm.evaluation.distances import copied_share, frechet_distance, nearest_differences
from ggm.evaluation.reasons import reason
from ggm.evaluation.samples import ImageShape
from ggm.extras import require

_PROBES = 2


def to_pixels(tokens: torch.Tensor, shape: ImageShape) -> torch.Tensor:
    """Images of tokens [N, L], as networks of FID take them: uint8 [N, 3, H, W], grey ones repeated."""
    grid = tokens.view(len(tokens), shape.height, shape.width, shape.channels)
    bright = (grid.double() * (255 / (shape.levels - 1))).round().to(torch.uint8)
    return bright.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()


class FeatureNetwork(torch.nn.Module):
    """A network from a file, as torchmetrics' FID takes one.

    Parameters
    ----------
    path : Path
        A file of TorchScript (``torch.jit.save``) or, if it ends in .pt2, of ``torch.export.save``. The
        network takes images, uint8 [B, 3, H, W], and gives features [B, D] or [B, D, 1, 1]; what else
        it needs, as a resizing to 299 x 299, it does itself. A parameter ``return_features`` of it is
        set.
    device : str
        Where it runs.
    shape : ImageShape
        Of the images, to try it out.

    Attributes
    ----------
    num_features : int
        D.

    Raises
    ------
    OSError, ValueError
        If there is no such file, or no such network in it.
    """

    def __init__(self, path: Path, device: str, shape: ImageShape) -> None:
        super().__init__()
        if not path.is_file():
            raise FileNotFoundError(f"--fid-network: there is no file {path}")
        self.device = device
        try:
            self.network, self._options = _load(path, device)
            probe = to_pixels(torch.zeros(_PROBES, shape.length, dtype=torch.int64), shape)
            features = self(probe)
        except Exception as error:  # of many kinds
            images = f"uint8 images {[_PROBES, 3, shape.height, shape.width]}"
            raise ValueError(
                f"--fid-network: {path} gives no features of {images}: {reason(error)}"
            ) from error
        if features.ndim != 2 or len(features) != _PROBES:
            raise ValueError(f"--fid-network: got features {list(features.shape)}; allowed: [{_PROBES}, D]")
        self.num_features = int(features.shape[1])

    @torch.inference_mode()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features [B, D] on the CPU; float32 at least, so that FID is."""
        features = self.network(images.to(self.device), **self._options)
        wide = torch.promote_types(features.dtype, torch.float32)
        return features.flatten(1).cpu().to(wide)


def _load(path: Path, device: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    if path.suffix == ".pt2":
        # A program that was exported has no modes and no options.
        return torch.export.load(path).module().to(device), {}
    network = torch.jit.load(str(path), map_location=device).eval()
    names = [argument.name for argument in network.forward.schema.arguments]
    return network, {"return_features": True} if "return_features" in names else {}


def fid(
    samples: torch.Tensor,
    reference: torch.Tensor,
    shape: ImageShape,
    network: FeatureNetwork,
    batch: int,
) -> float:
    """Frechet distance of features, by torchmetrics.

    Parameters
    ----------
    samples, reference : torch.Tensor
        Tokens of images, int64 [N, L] and [M, L], N and M at least 2.
    shape : ImageShape
        How they are images.
    network : FeatureNetwork
        Gives the features: FID proper is that of Inception v3 only.
    batch : int
        Images at a time.

    Returns
    -------
    float
        The distance.

    Raises
    ------
    MissingExtraError
        If torchmetrics is not installed.
    """
    metric = require("torchmetrics.image.fid", extra="eval").FrechetInceptionDistance(feature=network)
    for tokens, real in ((reference, True), (samples, False)):
        for part in tokens.split(batch):
            metric.update(to_pixels(part, shape), real=real)
    return float(metric.compute())


def compare_images(
    samples: torch.Tensor,
    reference: torch.Tensor,
    shape: ImageShape,
    *,
    network: FeatureNetwork | None,
    path: Path | None,
    batch: int,
) -> dict[str, Any]:
    """All that is said of images beside a reference set.

    Returns
    -------
    dict
        ``pixel_frechet_distance`` (of tokens, not of brightness), ``copied_share``,
        ``nearest_mean_difference`` (tokens that differ from the nearest reference image, mean over
        samples) and, with a network, ``fid``; None where there are fewer than two images.
    """
    enough = min(len(samples), len(reference)) >= 2
    found: dict[str, Any] = {
        "samples": len(samples),
        "reference_images": len(reference),
        "pixel_frechet_distance": frechet_distance(samples, reference) if enough else None,
        "copied_share": copied_share(samples, reference),
        "nearest_mean_difference": float(nearest_differences(samples, reference).double().mean()),
        "fid": None,
    }
    if network is not None and path is not None:
        found["fid"] = {
            "value": fid(samples, reference, shape, network, batch) if enough else None,
            "network": str(path),
            "network_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "features": network.num_features,
        }
    return found
