"""Which sequences each training step looks at: a function of seed and step, whatever the processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch

from ggm.config import ConfigError
from ggm.data.text import TokenStream
from ggm.draws import uniforms
from ggm_kernels import Stream


class Tokens(Protocol):
    """Sequences by index: an int64 tensor [N, L], or anything that behaves like it."""

    def __len__(self) -> int: ...

    def __getitem__(self, ids: torch.Tensor, /) -> torch.Tensor: ...


class Batch(NamedTuple):
    """Sequences: global sample ids, int64 [B], and tokens, int64 [B, L]."""

    sample_ids: torch.Tensor
    tokens: torch.Tensor


def index_batches(count: int, size: int, *, seed: int, start: int = 0) -> Iterator[torch.Tensor]:
    """Indices of batches: a new permutation every epoch, without an incomplete last batch.

    Parameters
    ----------
    count : int
        Sequences there are.
    size : int
        Sequences per batch, at most `count`.
    seed : int
        Key of the permutations.
    start : int
        Number of the first batch: what comes is what would have come after `start` batches.

    Yields
    ------
    torch.Tensor
        int64 [size].
    """
    per_epoch = count // size
    for epoch in itertools.count(start // per_epoch):
        keys = uniforms(torch.arange(count), 1, stream=Stream.DATA_ORDER, seed=seed, step=epoch)
        batches = keys[:, 0].argsort(stable=True)[: per_epoch * size].split(size)
        skipped = start % per_epoch if epoch == start // per_epoch else 0
        yield from batches[skipped:]


def batches(
    tokens: Tokens | TokenStream, size: int, *, seed: int, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Part of every batch that one process computes.

    Parameters
    ----------
    tokens : Tokens or TokenStream
        Sequences to shuffle, or a stream of them, which comes as it is: its sample ids count them.
    size : int
        Sequences per batch over all processes, a multiple of `world`.
    seed : int
        Key of the order.
    start : int
        Number of the first batch.
    rank, world : int
        This process, and how many there are: a batch is cut into `world` parts.

    Yields
    ------
    Batch
        size / world sequences.
    """
    share = size // world
    part = slice(rank * share, (rank + 1) * share)
    if isinstance(tokens, TokenStream):
        rows = itertools.islice(enumerate(tokens), start * size, None)
        while True:
            chosen = list(itertools.islice(rows, size))[part]
            yield Batch(torch.tensor([i for i, _ in chosen]), torch.stack([row for _, row in chosen]))
    for ids in index_batches(len(tokens), size, seed=seed, start=start):
        yield Batch(ids[part], tokens[ids[part]])


def check_batch(tokens: Tokens | TokenStream, size: int) -> None:
    """Raise ConfigError if there are not as many sequences as a batch has."""
    if not isinstance(tokens, TokenStream) and len(tokens) < size:
        raise ConfigError(
            f"training.batch_size: got {size}; allowed: at most the {len(tokens)} sequences there are"
        )
