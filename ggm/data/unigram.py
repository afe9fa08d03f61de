"""Frequencies of tokens, as a law for the noise."""

from __future__ import annotations

from itertools import islice

import torch

from ggm.data.batches import Tokens
from ggm.data.text import TokenStream

# Numbers of our own choice. The law needs no more precision than these sequences give it.
COUNTED = 65536
UNIFORM_SHARE = 0.05
_CHUNK = 4096


def unigram_law(tokens: Tokens | TokenStream, vocab_size: int) -> tuple[float, ...]:
    """Law pi of noise that looks like data: frequencies, mixed with 5 % of the uniform law.

    Parameters
    ----------
    tokens : Tokens or TokenStream
        Training sequences. At most 65536 are counted: of a set spread over all of it, of a stream
        the first 4096.
    vocab_size : int
        V.

    Returns
    -------
    tuple of float
        V probabilities with sum 1, rounded to 9 digits. None is below 0.05 / V, so that every token may
        be noise: the log-odds of one that may not would be infinite.
    """
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    if isinstance(tokens, TokenStream):
        counts += torch.stack(list(islice(tokens, _CHUNK))).flatten().bincount(minlength=vocab_size)
    else:
        chosen = torch.arange(0, len(tokens), -(-len(tokens) // COUNTED))
        for ids in chosen.split(_CHUNK):
            counts += tokens[ids].flatten().bincount(minlength=vocab_size)
    frequencies = counts.double() / counts.sum()
    law = (1.0 - UNIFORM_SHARE) * frequencies + UNIFORM_SHARE / vocab_size
    return tuple(float(f"{probability:.9g}") for probability in law.tolist())
