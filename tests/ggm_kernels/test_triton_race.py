"""The mathematics of the race in Triton: scores to the tails, the keep decision."""

import pytest
import torch

from ggm_kernels import backends
from ggm_kernels.reference.glauber_step import keep_decision
from ggm_kernels.reference.philox import uniform

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not backends()["triton"], reason="needs a GPU or Triton's interpreter")

import triton.language as tl  # noqa: E402

from ggm_kernels.triton.race import keeps_token, log_exponential  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EDGES = [
    0,
    1,
    2,
    3,
    2**8,
    2**16,
    2**24 - 1,
    2**24 + 1,
    2**31 - 1,
    2**31,
    2**31 + 1,
    2**32 - 129,
    2**32 - 2,
    2**32 - 1,
]
BLOCK = 2**14


@triton.jit
def _kernel(word_ptr, z_ptr, log_e_ptr, keeps_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(word_ptr + at).to(tl.uint32)
    z = tl.load(z_ptr + at)
    tl.store(log_e_ptr + at, log_exponential(word))
    tl.store(keeps_ptr + at, keeps_token(z, word))


def results(words, z):
    """Columns log E, keeps of words and logits, all [BLOCK]."""
    log_e = torch.empty(BLOCK, device=DEVICE)
    keeps = torch.empty(BLOCK, dtype=torch.bool, device=DEVICE)
    _kernel[(1,)](words.to(DEVICE), z.to(DEVICE), log_e, keeps, BLOCK=BLOCK)
    return log_e.cpu(), keeps.cpu()


def words_and_edges():
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(2**32, (BLOCK,), generator=generator) >> torch.randint(
        32, (BLOCK,), generator=generator
    )
    words[: len(EDGES)] = torch.tensor(EDGES)
    return words


def test_exponentials_are_precise_to_the_tails():
    words = words_and_edges()
    log_e, _ = results(words, torch.zeros(BLOCK))
    expected = (-torch.log1p(-uniform(words).double())).log()
    # As precise as float32 logarithms can be, also where log E is near 0 or -23.
    assert float((log_e - expected).abs().max()) < 4e-6
    assert float(((log_e - expected) / expected.abs().clamp_min(1)).abs().max()) < 1e-6
    # What 1 - u keeps of a small u must not decide: a plain log(1 - u) loses it all.
    assert not torch.isfinite((-(1 - uniform(torch.tensor([0, 2**6]))).log()).log()).any()


def test_keep_decision_is_that_of_the_reference():
    words = words_and_edges()
    generator = torch.Generator().manual_seed(2)
    f = torch.randn(BLOCK, generator=generator) * 8
    f[:40], f[40:60], f[60:80] = torch.nan, torch.inf, -torch.inf
    _, keeps = results(words, f)
    assert int((keeps != keep_decision(f, words)).sum()) <= 1
    assert keeps[:60].all() and not keeps[60:80].any()
