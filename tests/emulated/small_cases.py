"""Small inputs for every kernel of csrc/cuda, held against the reference. Each check fails by AssertionError."""

import math
import mmap

import torch

from ggm_kernels import (
    NoiseLaw,
    corrupt,
    glauber_step,
    linear_cross_entropy,
    linear_glauber_step,
    linear_sigmoid_bce,
    sigmoid_bce,
)
from ggm_kernels.native import glauber_step_cuda

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKEND = "emulated"
NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python names from 3.12 on
BY_PRODUCTS = ("log_sum_exp", "log_prob", "raw_log_prob", "entropy", "margin", "keep_prob")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(bound: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(bound, shape, generator=torch.Generator().manual_seed(seed))


def check_corrupt() -> None:
    law = NoiseLaw(draw(17).softmax(0))
    for dtype in (torch.int32, torch.int64):
        for batch, length in [(3, 514), (2, 301), (70, 8), (1, 1)]:
            tokens = ids(17, batch, length).to(dtype)
            for keep_prob, frozen, noise in [
                (draw(batch).sigmoid(), None, None),
                (draw(batch, length).sigmoid(), tokens % 3 == 0, law),
            ]:
                arguments = {"seed": 3, "step": 2, "frozen": frozen, "noise": noise}
                ours, theirs = (
                    corrupt(tokens, keep_prob, 17, **arguments, backend=name)
                    for name in (BACKEND, "reference")
                )
                assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def check_losses() -> None:
    for dtype, width, count in [(DTYPES[0], 200, 3), (DTYPES[1], 136, 37), (DTYPES[2], 33, 1)]:
        leaves = [draw(50, width, seed=1).to(dtype), draw(30, width, seed=2).to(dtype) / 6]
        leaves += [draw(30, seed=3).to(dtype)]
        candidates, signal = ids(30, 50, count), draw(50, count).sigmoid()
        results = []
        for backend in (BACKEND, "reference"):
            hidden, weight, bias = (leaf.clone().requires_grad_() for leaf in leaves)
            loss = linear_sigmoid_bce(
                hidden, weight, candidates, signal, bias=bias, offset=draw(50), backend=backend,
                shared_candidates=ids(30, 41), shared_weight=draw(41).sigmoid(),
            )  # fmt: skip
            logits = (hidden @ weight.T).detach().requires_grad_()
            full = sigmoid_bce(logits, candidates, signal, 0.3, backend=backend)
            (loss.sum() + full @ torch.linspace(-1, 2, 50)).backward()
            results.append([loss, full, hidden.grad, weight.grad, bias.grad, logits.grad])
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        for ours, theirs in zip(*results, strict=True):
            assert_close(ours, theirs, tolerance)


def check_cross_entropy() -> None:
    for dtype, vocab_size, softcap in [(DTYPES[0], 1000, 3.0), (DTYPES[1], 33, None), (DTYPES[2], 257, None)]:
        leaves = [draw(20, 24, seed=1).to(dtype), draw(vocab_size, 24, seed=2).to(dtype) / 6]
        leaves += [draw(vocab_size, seed=3).to(dtype)]
        targets = ids(vocab_size, 20)
        targets[3] = -100
        options = {
            "softcap": softcap,
            "z_loss": 0.01,
            "logit_shift": draw(20),
            "shifted_token": targets % vocab_size,
        }
        options["shifted_token"] = options["shifted_token"].clamp(0)
        for reduction in ("none", "mean"):
            results = []
            for backend in (BACKEND, "reference"):
                hidden, weight, bias = (leaf.clone().requires_grad_() for leaf in leaves)
                loss = linear_cross_entropy(
                    hidden, weight, targets, bias=bias, **options, reduction=reduction, backend=backend
                )
                loss.sum().backward()
                results.append([loss, hidden.grad, weight.grad, bias.grad])
            tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3 if dtype == torch.float16 else 1e-4
            for ours, theirs in zip(*results, strict=True):
                assert_close(ours, theirs, tolerance)


def check_steps() -> None:
    plain, keeping = {}, {"noise_rate": draw(2, 5).sigmoid(), "normalize": True}
    for dtype, vocab_size in [(DTYPES[0], 33), (DTYPES[1], 9001), (DTYPES[2], 9000), (DTYPES[0], 12289)]:
        logits = (draw(2, 5, vocab_size) * 2 - 3).to(dtype)
        for options in (plain, keeping, {"temperature": 0.0}):
            check_step(logits, options)


def check_filters() -> None:
    for dtype, vocab_size in [(DTYPES[0], 4099), (DTYPES[1], 8448), (DTYPES[2], 20)]:
        logits = (draw(2, 5, vocab_size) * 2 - 3).to(dtype)
        for options in ({"top_k": 5}, {"top_p": 0.8}, {"top_k": 40, "top_p": 0.9, "min_p": 0.01}):
            check_step(logits, {**options, "temperature": 0.8})
    flat = draw(1, 2, 8000) / 4  # more candidates than there is room for
    check_step(flat, {"top_k": 5000, "top_p": 0.9})
    check_step(flat, {"top_k": 4000, "top_p": 0.95, "filter_order": "p_k_min"})


def check_tiles() -> None:
    """From hidden states, with a buffer that holds but two groups of a few rows."""
    before = glauber_step_cuda._BUFFER_BYTES, glauber_step_cuda._BUFFER_ROWS
    glauber_step_cuda._BUFFER_BYTES, glauber_step_cuda._BUFFER_ROWS = 4 * 2048 * 4, 4
    try:
        hidden, weight, bias = draw(2, 5, 16, seed=1), draw(5003, 16, seed=2) / 3, draw(5003, seed=3)
        arguments = {"positions": torch.arange(5), "seed": 5, "step": 1, "bias": bias}
        for options in ({}, {"temperature": 0.0}, {"top_k": 50}, {"noise_rate": draw(2, 5).sigmoid()}):
            results = []
            for backend in (BACKEND, "reference"):
                by_products = {name: torch.zeros(2, 5) for name in BY_PRODUCTS[:-1]}
                drawn = linear_glauber_step(
                    ids(5003, 2, 8), hidden, weight, **arguments, **options, **by_products, backend=backend
                )
                results.append([drawn, *by_products.values()])
            assert torch.equal(results[0][0], results[1][0])
            for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
                assert_close(ours, theirs, 1e-3)
    finally:
        glauber_step_cuda._BUFFER_BYTES, glauber_step_cuda._BUFFER_ROWS = before


def check_addresses() -> None:
    """A row is summed and drawn from alike wherever it lies, to the bit."""
    names = ("log_sum_exp", "log_prob", "entropy")
    for dtype in DTYPES:
        row, seen = draw(4099).to(dtype), []
        for offset in range(8):
            logits = torch.zeros(offset + 4107, dtype=dtype)[offset : offset + 4099].copy_(row)
            for asked in (names[:2], names):  # by the plain kernel and by the one with entropy
                by_products = {name: torch.zeros(1, 1) for name in asked}
                token, position = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
                glauber_step(
                    token, logits[None, None], position, seed=1, step=0, **by_products, backend=BACKEND
                )
                seen.append((int(token), *(float(value) for value in by_products.values())))
        assert len({values[:3] for values in seen}) == 1 and len(set(seen)) == 2


def check_step(logits: torch.Tensor, options: dict) -> None:
    batch, count, vocab_size = logits.shape
    tokens, positions = ids(vocab_size, batch, count + 3), torch.arange(count)
    arguments = {"seed": 5, "step": 1, **options}
    results = []
    for backend in (BACKEND, "reference"):
        names = BY_PRODUCTS if "noise_rate" in options else BY_PRODUCTS[:-1]
        by_products = {name: torch.zeros(batch, count) for name in names}
        drawn = glauber_step(tokens.clone(), logits, positions, **arguments, **by_products, backend=backend)
        results.append([drawn, *by_products.values()])
    assert torch.equal(results[0][0], results[1][0])
    for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
        assert_close(ours, theirs, 1e-3)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


def check_strides_beyond_32_bits() -> None:
    """Rows 2**32 + 8 elements apart, in memory of which only the pages that are touched exist."""
    stride, width = 2**32 + 8, 40
    size = 2 * (stride + width)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    far = torch.frombuffer(pages, dtype=torch.bfloat16).as_strided((2, width), (stride, 1))
    far.copy_(draw(2, width))
    check_step(far[None], {})
    check_step(far[None], {"top_k": 5})
    hidden, candidates = draw(6, width).bfloat16(), torch.tensor([0, 1, 0, 1, 1, 0])
    ours, theirs = (
        linear_sigmoid_bce(hidden, far, candidates, 0.3, backend=name) for name in (BACKEND, "reference")
    )
    assert_close(ours, theirs, 1e-3)
    ours, theirs = (sigmoid_bce(far, candidates[:2], 0.3, backend=name) for name in (BACKEND, "reference"))
    assert_close(ours, theirs, 1e-3)


def check_present_tokens_are_left_where_there_is_no_law() -> None:
    logits = draw(1, 5, 300)
    logits[0, 1], logits[0, 3, 7] = -math.inf, math.nan
    check_step(logits, {})
    check_step(logits, {"top_k": 9})


ALL = [
    check_corrupt,
    check_losses,
    check_cross_entropy,
    check_steps,
    check_filters,
    check_tiles,
    check_addresses,
    check_strides_beyond_32_bits,
    check_present_tokens_are_left_where_there_is_no_law,
]
