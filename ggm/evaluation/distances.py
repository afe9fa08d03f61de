"""Distance of a set of samples to data, and copies of data among them."""

from __future__ import annotations

import torch

_ROWS = 4096  # of the reference at a time: all differences at once need not fit in memory


def frechet_distance(samples: torch.Tensor, reference: torch.Tensor) -> float:
    """Frechet distance between normal laws fitted to two sets of vectors.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` of means and covariances. It falls with the
    number of vectors, even for sets of one law: compare at equal numbers only.

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
    mean_gap = (first.mean(0) - second.mean(0)).square().sum()
    covariance1, covariance2 = torch.cov(first.T), torch.cov(second.T)
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
    rows = samples.double()
    nearest = [torch.cdist(rows, part.double(), p=0).amin(dim=1) for part in reference.split(_ROWS)]
    return torch.stack(nearest).amin(dim=0).round().long()


def copied_share(samples: torch.Tensor, reference: torch.Tensor) -> float:
    """Share of samples [N, L] that equal a reference sequence [M, L] in every position."""
    return float((nearest_differences(samples, reference) == 0).double().mean())
