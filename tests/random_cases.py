"""Options of a call in random combinations: what cases are drawn with, and how many of them are run.

A hundred combinations of each call in the fast suite, 3,000 where `slow` is asked for; GGM_KERNELS_CASES=2000 makes it
that many instead. A case is known by its number.
"""

import os
import random

import torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# On both sides of every size that kernels cut a vocabulary into: words of a Philox block, lanes, tiles, chunks, groups.
SIZES = sorted({max(1, 2**power + side) for power in range(14) for side in (-1, 0, 1)})
SMALL = [size for size in SIZES if size <= 130]
# Triton's interpreter takes a second for a case, the emulator a part of one.
_FEW = {"triton": 4, "emulated": 20}
_MANY = {"triton": 100, "emulated": 300}


class Draw(random.Random):
    """Random choices of a case, tensors among them."""

    def __init__(self, seed):
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(self.getrandbits(60))

    def maybe(self, probability, make):
        return make() if self.random() < probability else None

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def uniform_tensor(self, *shape):
        return torch.rand(*shape, generator=self.generator)

    def integers(self, high, *shape):
        return torch.randint(high, shape, generator=self.generator)

    def layout(self, value):
        """The same values in other strides."""
        kind = self.choice(["plain", "plain", "permuted", "padded"])
        if kind == "permuted":
            order = list(range(value.dim()))
            self.shuffle(order)
            back = [order.index(dim) for dim in range(value.dim())]
            return value.permute(order).contiguous().permute(back)
        if kind == "padded":
            wider = value.new_empty([size + 1 for size in value.shape])
            inner = wider[tuple(slice(0, size) for size in value.shape)]
            return inner.copy_(value)
        return value


def few(backend):
    """How many cases of a call the fast suite runs."""
    return _FEW.get(backend, 100)


def many(backend):
    """How many cases of a call are run where `slow` is asked for."""
    return int(os.environ.get("GGM_KERNELS_CASES") or _MANY.get(backend, 3000))


def check_many(check, call, backend, count):
    """Check cases 0 .. count - 1; a failure names the first that is wrong."""
    judgements = []
    for number in range(count):
        try:
            judgements.append(check(call, backend, number))
        except AssertionError as error:
            raise AssertionError(f"case {number} of {call.__name__}: {error}") from error
        except Exception as error:
            raise RuntimeError(f"case {number} of {call.__name__}") from error
    return judgements
