"""glauber_step and linear_glauber_step against what PyTorch users write, and against the floor under each.

Floors: reading the logits once (their row maximum), the bare matrix product.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import linear

from benchmarks import rivals
from benchmarks.timing import peak_extra_bytes, synchronise, times_faster
from ggm_kernels import backends, glauber_step, linear_glauber_step

BACKENDS = ["reference", "cpu", "cuda", "triton"]
VOCAB_SIZE, HIDDEN_SIZE = 50257, 768
LOGITS_LIMIT = 8 * 2**30  # bytes of logits beyond which a size is left to the calls that make none
FILTERS = {"top-k 50": {"top_k": 50}, "top-p 0.9": {"top_p": 0.9}, "min-p 0.05": {"min_p": 0.05}}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rows" in metafunc.fixturenames:
        full = metafunc.config.getoption("--bench-full")
        metafunc.parametrize("rows", [1, 16, 256, 4096, 65536] if full else [256], ids=lambda n: f"N={n}")


@dataclass
class Rows:
    """One sequence of N positions, all to be resampled, and what their logits are made of."""

    tokens: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor
    weight: torch.Tensor
    logits: torch.Tensor | None

    def step(self, backend: str | None = None, **arguments) -> torch.Tensor:
        tokens, positions, logits = self.tokens, self.positions, self.need_logits()[None]
        return glauber_step(tokens, logits, positions, seed=1, step=0, backend=backend, **arguments)

    def linear_step(self, backend: str | None = None, **arguments) -> torch.Tensor:
        factors = self.hidden[None], self.weight
        arguments = {"seed": 1, "step": 0, "backend": backend, **arguments}
        return linear_glauber_step(self.tokens, *factors, self.positions, **arguments)

    def need_logits(self) -> torch.Tensor:
        if self.logits is None:
            pytest.skip("the logits alone would take more than 8 GiB")
        return self.logits


@pytest.fixture(scope="module")
def cached() -> dict[int, Rows]:
    return {}


@pytest.fixture
def inputs(rows: int, device, cached) -> Rows:
    if rows not in cached:
        cached.clear()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        hidden = torch.randn(rows, HIDDEN_SIZE, device=device, dtype=dtype)
        weight = torch.randn(VOCAB_SIZE, HIDDEN_SIZE, device=device, dtype=dtype) * 0.05
        fits = rows * VOCAB_SIZE * 4 <= LOGITS_LIMIT
        tokens = torch.randint(VOCAB_SIZE, (1, rows), device=device)
        positions = torch.arange(rows, device=device)
        cached[rows] = Rows(tokens, positions, hidden, weight, linear(hidden, weight) if fits else None)
    return cached[rows]


# What PyTorch users write


def multinomial(logits: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(logits.float().softmax(-1), 1)[:, 0]


def gumbel(logits: torch.Tensor) -> torch.Tensor:
    uniform = torch.rand(logits.shape, device=logits.device)
    return (logits.float() - torch.log(-torch.log(uniform))).argmax(-1)


def filtered(logits: torch.Tensor, top_k=None, top_p=None, min_p=None) -> torch.Tensor:
    """Hugging Face's logits processors in their order, then multinomial."""
    logits = logits.float()
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p is not None:
        ascending, order = logits.sort()
        removed = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        logits = logits.masked_fill(removed.scatter(1, order, removed), -torch.inf)
    if min_p is not None:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs < min_p * probs.amax(1, keepdim=True), -torch.inf)
    return multinomial(logits)


def record(benchmark, rows: Rows, call: Callable[[], torch.Tensor], rival: Callable, name: str, group: str):
    """Time `call`; note its ratio to `rival`, measured side by side, its memory and its rate."""
    count, device = rows.tokens.shape[1], rows.tokens.device.type
    benchmark.group = f"{group}, N={count}, V={VOCAB_SIZE}, {device}, {torch.get_num_threads()} threads"

    def synchronised() -> torch.Tensor:
        result = call()
        synchronise()
        return result

    benchmark.extra_info["peak_extra_MB"] = round(peak_extra_bytes(call) / 1e6, 1)
    result = benchmark.pedantic(synchronised, rounds=5)
    benchmark.extra_info["tokens/s"] = round(count / benchmark.stats["median"])
    benchmark.extra_info[f"times_faster_than_{name}"] = round(times_faster(rival, call), 2)
    assert ((result >= 0) & (result < VOCAB_SIZE)).all()


def record_step(benchmark, rows: Rows, call: Callable[[], torch.Tensor]) -> None:
    record(benchmark, rows, call, lambda: multinomial(rows.need_logits()), "multinomial", "glauber_step")


def skip_unless_served(op: str, backend: str, device: torch.device) -> None:
    state = backends()[backend]
    if not state or op not in state.ops:
        pytest.skip(f"{backend}: {state.reason}")
    if backend in ("cpu", "cuda") and backend != device.type:
        pytest.skip(f"{backend}: the tensors are on {device.type}")


def assert_agrees(rows: Rows, step: Callable[[str], torch.Tensor], backend: str, allowed: float) -> None:
    """The tokens of `backend` are the reference's, but for ties of rounding."""
    few = Rows(
        rows.tokens[:, :256], rows.positions[:256], rows.hidden[:256], rows.weight,
        None if rows.logits is None else rows.logits[:256],
    )  # fmt: skip
    results = [step(few, name).clone() for name in (backend, "reference")]
    assert (results[0] != results[1]).float().mean() <= allowed


# From logits


def test_floor_row_maximum(benchmark, inputs):
    logits = inputs.need_logits()
    record_step(benchmark, inputs, lambda: logits.max(-1).indices)


def test_torch_multinomial(benchmark, inputs):
    logits = inputs.need_logits()
    record_step(benchmark, inputs, lambda: multinomial(logits))


def test_torch_gumbel(benchmark, inputs):
    logits = inputs.need_logits()
    record_step(benchmark, inputs, lambda: gumbel(logits))


def test_torch_compiled_gumbel(benchmark, inputs):
    logits = inputs.need_logits()
    compiled = rivals.compiled(gumbel, "the Gumbel maximum", lambda call: call(logits))
    record_step(benchmark, inputs, lambda: compiled(logits))


def test_flashinfer(benchmark, inputs):
    flashinfer = rivals.require("flashinfer-python", "flashinfer", needs_cuda=True)
    logits = inputs.need_logits()
    record_step(benchmark, inputs, lambda: flashinfer.sampling.sampling_from_logits(logits.float()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ggm_kernels(benchmark, inputs, backend, device):
    skip_unless_served("glauber_step", backend, device)
    record_step(benchmark, inputs, lambda: inputs.step(backend))
    assert_agrees(inputs, Rows.step, backend, allowed=0.004)


# With filters


@pytest.mark.parametrize("name", FILTERS)
def test_torch_filters(benchmark, inputs, name):
    logits = inputs.need_logits()
    call = lambda: filtered(logits, **FILTERS[name])  # noqa: E731
    record(benchmark, inputs, call, call, "torch", f"glauber_step {name}")


@pytest.mark.parametrize("name", FILTERS)
def test_ggm_kernels_filters(benchmark, inputs, name):
    rival = lambda: filtered(inputs.need_logits(), **FILTERS[name])  # noqa: E731
    record(
        benchmark, inputs, lambda: inputs.step(**FILTERS[name]), rival, "torch", f"glauber_step {name}"
    )  # fmt: skip


# From hidden states


def record_linear(benchmark, rows: Rows, call: Callable[[], torch.Tensor]) -> None:
    rival = lambda: linear(rows.hidden, rows.weight)  # noqa: E731
    record(benchmark, rows, call, rival, "F.linear", "linear_glauber_step")


def test_floor_matrix_product(benchmark, inputs):
    inputs.need_logits()

    def product() -> torch.Tensor:
        linear(inputs.hidden, inputs.weight)
        return inputs.tokens

    record_linear(benchmark, inputs, product)


def test_torch_product_and_multinomial(benchmark, inputs):
    inputs.need_logits()
    record_linear(benchmark, inputs, lambda: multinomial(linear(inputs.hidden, inputs.weight)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ggm_kernels_linear(benchmark, inputs, backend, device):
    skip_unless_served("linear_glauber_step", backend, device)
    record_linear(benchmark, inputs, lambda: inputs.linear_step(backend))
    assert_agrees(inputs, Rows.linear_step, backend, allowed=0.004)


def test_ggm_kernels_keep_or_replace(benchmark, inputs, device):
    """At a noise rate at which few tokens change, few rows need the product."""
    rate = torch.full((1,), 1e-3, device=device)
    record_linear(benchmark, inputs, lambda: inputs.linear_step(noise_rate=rate, normalize=False))
