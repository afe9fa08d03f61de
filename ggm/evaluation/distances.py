"""Distance of a set of samples to data, and copies of data among them."""

from __future__ import annotations

import torch

_ROWS = 4096  # of either set at a time: all differences at once need not fit in memory


def frechet_distance(samples: torch.Tensor, reference: torch.Tensor) -> float:
    """Frechet distance between normal distributions fitted to two sets of vectors.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` of means and covariances. It falls with the
    number of vectors, even for sets of one distribution: compare at equal numbers only.

    Parameters
    ----------
    samples, reference : torch.Tensor
        Vectors, any real dtype, [N, D] and [M, D], N and M at least 2.

    Returns
    -------
    float
        The distance (squared, as in FID), computed in float64.
    """
    first, second = samples.double(), reference.double()
    return _distance(first.mean(0), torch.cov(first.T), second.mean(0), torch.cov(second.T))


class Moments:
    """Mean and covariance of vectors that come in batches: exact sums, for whole numbers.

    Parameters
    ----------
    size : int
        D.
    """

    def __init__(self, size: int) -> None:
        self._count = 0
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._products = torch.zeros(size, size, dtype=torch.float64)

    def add(self, rows: torch.Tensor) -> None:
        """Take in vectors, any real dtype, [B, D]."""
        wide = rows.double()
        self._count += len(wide)
        self._sum += wide.sum(dim=0)
        self._products.addmm_(wide.T, wide)

    def distance(self, other: Moments) -> float:
        """Frechet distance as of `frechet_distance`; of two vectors at least, each."""
        return _distance(*self._law(), *other._law())

    def _law(self) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self._sum / self._count
        return mean, (self._products - torch.outer(self._sum, mean)) / (self._count - 1)


def _distance(
    mean1: torch.Tensor, covariance1: torch.Tensor, mean2: torch.Tensor, covariance2: torch.Tensor
) -> float:
    mean_gap = (mean1 - mean2).square().sum()
    # tr (S1 S2)^(1/2) from the eigenvalues of the symmetric R S1 R, R = S2^(1/2).
    values, vectors = torch.linalg.eigh(covariance2)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance1 @ root).clamp_min(0).sqrt().sum()
    return float(mean_gap + covariance1.trace() + covariance2.trace() - 2 * cross)


def nearest_differences(samples: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Number of positions in which each sample differs from its nearest reference sequence.

    Parameters
    ----------
    samples, reference : torch.Tensor
        Tokens, integer [N, L] and [M, L].

    Returns
    -------
    torch.Tensor
        int64 [N]; 0 where the sample is a copy.
    """
    return torch.cat([_nearest(rows.double(), reference) for rows in samples.split(_ROWS)])


def _nearest(rows: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    nearest = [torch.cdist(rows, part.double(), p=0).amin(dim=1) for part in reference.split(_ROWS)]
    return torch.stack(nearest).amin(dim=0).round().long()


def copied_share(samples: torch.Tensor, reference: torch.Tensor) -> float:
    """Share of samples [N, L] that equal a reference sequence [M, L] in every position."""
    return float((nearest_differences(samples, reference) == 0).double().mean())
