"""Images against a reference set: FID, Frechet distance of raw pixels, copies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ggm.evaluation.config import ImageShape
from ggm.evaluation.distances import Moments, nearest_differences
from ggm.evaluation.images import ImageSet, to_pixels
from ggm.evaluation.reasons import reason
from ggm.extras import require
from ggm.progress import progress_bar

# Numbers of an image up to which the distance of raw pixels is computed: 64 x 64 grey, 36 x 36 coloured.
# The covariance of more takes gigabytes, and more images than there are to be of full rank.
PIXEL_LIMIT = 4096
_PROBES = 2


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
            raise FileNotFoundError(f"fid_network: there is no file {path}")
        self.path, self.device = path, device
        try:
            self.network, self._options = _load(path, device)
            probe = to_pixels(torch.zeros(_PROBES, shape.length, dtype=torch.uint8), shape)
            features = self(probe)
        except Exception as error:  # of many kinds
            images = f"uint8 images {[_PROBES, 3, shape.height, shape.width]}"
            raise ValueError(f"fid_network: {path} gives no features of {images}: {reason(error)}") from error
        if features.ndim != 2 or len(features) != _PROBES:
            raise ValueError(f"fid_network: got features {list(features.shape)}; allowed: [{_PROBES}, D]")
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


@dataclass
class _Seen:
    """What one reading of images leaves."""

    moments: Moments | None
    digests: list[bytes] = field(default_factory=list)


class ImageComparison:
    """Distances of sets of images to a reference set, which is read once, at the start.

    Parameters
    ----------
    reference : ImageSet
        What is compared with.
    network : FeatureNetwork, optional
        For FID: FID proper is that of Inception v3 only.
    batch : int
        Images at a time: more of them are never in memory.
    progress : bool
        Whether to show a bar.

    Raises
    ------
    OSError, ValueError
        If an image cannot be read.
    MissingExtraError
        If torchmetrics is not installed and there is a network.
    """

    def __init__(
        self,
        reference: ImageSet,
        network: FeatureNetwork | None = None,
        *,
        batch: int = 8,
        progress: bool = False,
    ) -> None:
        self._reference, self._network, self._batch = reference, network, batch
        self._fid: Any = None
        if network is not None:
            fid = require("torchmetrics.image.fid", extra="eval").FrechetInceptionDistance
            self._fid = fid(feature=network, reset_real_features=False)
        self._seen = self._read(reference, real=True, progress=progress)

    def compare(self, samples: ImageSet, *, progress: bool = False) -> dict[str, Any]:
        """All that is said of images beside the reference.

        Parameters
        ----------
        samples : ImageSet
            Of the same shape as the reference.
        progress : bool
            Whether to show a bar.

        Returns
        -------
        dict
            ``pixel_frechet_distance`` (of levels; None above `PIXEL_LIMIT` numbers per image),
            ``copied_share`` and ``nearest_mean_difference`` (tokens that differ from the nearest
            reference image, mean over samples; None without tokens) and, with a network, ``fid``.
            Distances are None where there are fewer than two images.
        """
        if self._fid is not None:
            self._fid.reset()
        seen = self._read(samples, real=False, progress=progress)
        enough = min(len(samples), len(self._reference)) >= 2
        pixel_distance = None
        if enough and seen.moments is not None and self._seen.moments is not None:
            pixel_distance = seen.moments.distance(self._seen.moments)
        shape = samples.shape
        return {
            "samples": len(samples),
            "reference_images": len(self._reference),
            "shape": [shape.height, shape.width, shape.channels],
            "pixel_frechet_distance": pixel_distance,
            **self._copies(samples, seen),
            "fid": self._fid_of(enough),
        }

    def _read(self, images: ImageSet, *, real: bool, progress: bool) -> _Seen:
        small = images.shape.length <= PIXEL_LIMIT
        seen = _Seen(Moments(images.shape.length) if small else None)
        if not small and self._fid is None and images.tokens is not None:
            return seen  # pixels are not asked for
        name = "reference images" if real else "images"
        with progress_bar(progress, len(images), name, unit="image") as bar:
            for levels in images.read(self._batch):
                if seen.moments is not None:
                    seen.moments.add(levels)
                if images.tokens is None:
                    seen.digests += [hashlib.sha256(row.numpy().data).digest() for row in levels]
                if self._fid is not None:
                    self._fid.update(to_pixels(levels, images.shape), real=real)
                bar.update(len(levels))
        return seen

    def _copies(self, samples: ImageSet, seen: _Seen) -> dict[str, float | None]:
        share = difference = None
        if samples.tokens is not None and self._reference.tokens is not None:
            nearest = nearest_differences(samples.tokens, self._reference.tokens).double()
            share, difference = float((nearest == 0).double().mean()), float(nearest.mean())
        elif samples.tokens is None and self._reference.tokens is None:
            known = set(self._seen.digests)
            share = sum(digest in known for digest in seen.digests) / len(samples)
        return {"copied_share": share, "nearest_mean_difference": difference}

    def _fid_of(self, enough: bool) -> dict[str, Any] | None:
        if self._network is None:
            return None
        path = self._network.path
        return {
            "value": float(self._fid.compute()) if enough else None,
            "network": str(path),
            "network_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "features": self._network.num_features,
        }
