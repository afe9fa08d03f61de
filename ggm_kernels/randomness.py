"""Where every random word comes from: streams, coordinates and their ranges.

All noise is Philox4x32-10 (Salmon et al., SC 2011) evaluated at logical coordinates. The key is the
64-bit seed; the 128-bit counter is packed as below, so no two coordinates share a counter. The same
table stands in ``csrc/numerics/counter.h``, and a test holds the two equal.

====  =======================================================================================
word  bits, lowest first
====  =======================================================================================
c0    20: vocabulary block  |  4: stream  |  8: sample id, bits 32..39
c1    32: position block
c2    32: sample id, bits 0..31
c3    32: step
====  =======================================================================================

One Philox call yields four words. How a stream spends them:

- token streams (everything but RACE, GROUP and KEEP): position block = position >> 1, vocabulary block 0.
  Words 2h and 2h + 1 serve position 2 * block + h: the first decides keep or noise, the second draws
  the uniform token or the column of the alias table. With a noise law, the acceptance word of a
  position is word (position & 3) of position block = position >> 2, vocabulary block 1. COMMIT decides
  nothing by words.
- RACE: position block = position, vocabulary block = v >> 2; word (v & 3) is the uniform of token v.
- GROUP: position block = position, vocabulary block = n >> 2; word (n & 3) is the uniform of group n of the
  race, the RACE_GROUP tokens from n * RACE_GROUP on, whatever part of the vocabulary a process or tile holds.
- KEEP: position block = position, vocabulary block 0. Word 0 decides to keep, word 1 takes a side of a
  mixture, words 2 and 3 draw its noise: column or uniform token, acceptance.
"""

from __future__ import annotations

from enum import IntEnum

import torch

from ggm_kernels import checks

MAX_SEED = 2**64
MAX_STEP = 2**32
MAX_SAMPLE_ID = 2**40
MAX_POSITION = 2**32
MAX_RACE_VOCAB = 2**22  # 20 bits of vocabulary blocks, four tokens each
MAX_VOCAB = 2**31 - 1
RACE_GROUP = 1024  # tokens that race as one before they race each other; part of the noise's definition


class Stream(IntEnum):
    """Independent uses of one seed. Numbers are part of the reproducible law: append, never renumber."""

    CORRUPT = 0
    RACE = 1
    KEEP = 2
    INITIAL = 3
    CANDIDATES = 4
    VISIT_ORDER = 5
    TIME = 6
    FROZEN = 7
    DATA_ORDER = 8
    REDENOISE = 9
    GROUP = 10
    COMMIT = 13
    SHARED_CANDIDATES = 14


STREAMS_OF_OPS = (Stream.CORRUPT, Stream.RACE, Stream.KEEP, Stream.GROUP, Stream.COMMIT)


def check_seed(seed: int) -> int:
    """Return `seed` as the signed 64-bit integer with the same bits, which torch schemas can carry."""
    seed = checks.integer("seed", seed, low=0, high=MAX_SEED)
    return seed if seed < 2**63 else seed - 2**64


def check_step(step: int | torch.Tensor, tokens: torch.Tensor) -> tuple[int, torch.Tensor | None]:
    """Split `step` into (integer, tensor): a 0-d int64 tensor can change inside a captured CUDA graph."""
    if isinstance(step, torch.Tensor):
        check_coordinate("step", step, ((),), "0-d", tokens)
        return 0, step
    return checks.integer("step", step, low=0, high=MAX_STEP), None


def check_coordinate(
    name: str, value: torch.Tensor, shapes: tuple[tuple[int, ...], ...], allowed: str, tokens: torch.Tensor
) -> None:
    """Check a seed or step that is a tensor."""
    if value.dtype != torch.int64 or not checks.has_shape(value, shapes):
        raise TypeError(
            f"{name}: got a {value.dtype} tensor of shape {tuple(value.shape)}; "
            f"allowed: an int or an int64 tensor, {allowed}"
        )
    checks.tensor(name, value, dtypes=(torch.int64,))
    checks.same_device(name, value, "tokens", tokens)


def check_sample_ids(sample_ids: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor | None:
    """Check shape, dtype and device; return contiguous int64 ids, or None for 0, 1, .., B - 1."""
    if sample_ids is None:
        return None
    checks.tensor("sample_ids", sample_ids, dtypes=checks.INTEGERS, shapes=[tokens.shape[:1]])
    checks.same_device("sample_ids", sample_ids, "tokens", tokens)
    return sample_ids.to(torch.int64).contiguous()


def check_coordinate_values(step: torch.Tensor | None, sample_ids: torch.Tensor | None) -> None:
    """Raise ValueError where the values of coordinates that are tensors leave their ranges (synchronises)."""
    if step is not None:
        checks.values_in_range("step", step, 0, MAX_STEP, ValueError)
    if sample_ids is not None:
        checks.values_in_range("sample_ids", sample_ids, 0, MAX_SAMPLE_ID, ValueError)
