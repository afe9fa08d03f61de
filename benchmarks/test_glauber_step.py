"""glauber_step and linear_glauber_step against what PyTorch users write, and against the floor under each.

Floors: reading the logits once (their row maximum), the bare matrix product.
"""

from collections.abc import Callable, Collection

import pytest
import torch
from torch.nn.functional import linear

from benchmarks import rivals
from benchmarks.ceilings import Work
from benchmarks.problems.glauber_step import (
    ASKED_FOR,
    FILTERS,
    SMALL_SIZES,
    Rows,
    Size,
    filtered,
    gumbel,
    make_rows,
    multinomial,
)
from benchmarks.recording import BACKENDS, Case, best_backend, name_of, role_of, skip_unless_served

FULL_SIZES = [Size(rows=rows) for rows in (1, 16, 256, 4096, 65536)]
# Rows, then vocabulary: few implementations, for the curves.
CURVES = [Size(rows=rows) for rows in (1, 16)] + [Size(vocab_size=v) for v in (1024, 8192, 262144)]
# 256 rows of logits in half precision fit a GPU's cache, and these do not.
GPU_CURVES = [*CURVES, Size(rows=1024)]
# From hidden states. Few rows wait for the weight to be read, many for the product: on a GPU one kernel for
# all loses to the library's product somewhere between, on a CPU few rows have a product of their own. A cache
# holds most of the weight of 50257 tokens from call to call, and little of the last.
CPU_LINEAR_SIZES = [Size(), Size(rows=32)]
GPU_LINEAR_SIZES = [*(Size(rows=rows) for rows in (1, 16, 64, 256, 1024)), Size(rows=64, vocab_size=262144)]


def sizes_of(fixtures: Collection[str], on_gpu: bool, full: bool) -> list[Size]:
    """Sizes of a benchmark, told by the fixtures that it asks for; `full` adds to them."""
    if "curve" in fixtures:
        return GPU_CURVES if on_gpu else CURVES
    linear_sizes = GPU_LINEAR_SIZES if on_gpu else CPU_LINEAR_SIZES
    few = linear_sizes if "linear_inputs" in fixtures else [Size()]
    return list(dict.fromkeys([*few, *FULL_SIZES])) if full else few


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        full = metafunc.config.getoption("--bench-full")
        sizes = sizes_of(metafunc.fixturenames, torch.cuda.is_available(), full)
        metafunc.parametrize("size", sizes, ids=str)


@pytest.fixture(scope="module")
def cached() -> dict[Size, Rows]:
    return {}


@pytest.fixture
def inputs(size: Size, device, cached) -> Rows:
    if size not in cached:
        cached.clear()
        cached[size] = make_rows(size, device)
    return cached[size]


@pytest.fixture
def linear_inputs(inputs: Rows) -> Rows:
    """The same, at the sizes that a product is of interest at."""
    return inputs


# What PyTorch users write


# What is timed


def step_case(rows: Rows, form: str = "", rival: tuple[str, Callable] | None = None) -> Case:
    """Resampling from logits: they must be read once."""
    logits = rows.need_logits()
    op = f"glauber_step, {form}" if form else "glauber_step"
    size = {"N": logits.shape[0], "V": logits.shape[1]}
    work = Work(logits.numel() * logits.element_size())
    return Case(op, size, logits.device, work, rival or ("multinomial", lambda: multinomial(logits)))


def linear_case(rows: Rows) -> Case:
    """Resampling from hidden states: hidden and weight must be read and multiplied once."""
    (count, width), vocab_size = rows.hidden.shape, rows.weight.shape[0]
    read = (rows.hidden.numel() + rows.weight.numel()) * rows.weight.element_size()
    work = Work(read, 2 * count * vocab_size * width, rows.weight.dtype)
    size = {"N": count, "V": vocab_size, "d": width}
    product = ("F.linear", lambda: linear(rows.hidden, rows.weight))
    return Case("linear_glauber_step", size, rows.weight.device, work, product)


def keep_case(rows: Rows) -> Case:
    """Keep or replace: the verdict of every row needs one dot product, and hardly any row more."""
    whole = linear_case(rows)
    work = Work(2 * rows.hidden.numel() * rows.hidden.element_size())
    return Case("linear_glauber_step, keep or replace", whole.size, whole.device, work, whole.rival)


@pytest.fixture
def timed(record) -> Callable:
    """`record`, with tokens per second, of calls that return one token per row."""

    def timed(case: Case, name: str, call: Callable[[], torch.Tensor], role: str = "rival") -> None:
        result = record(case, name, call, role, rounds=5, per_second={"tokens": case.size["N"]})
        assert ((result >= 0) & (result < case.size["V"])).all()

    return timed


def assert_agrees(rows: Rows, step: Callable[[str], torch.Tensor], backend: str, allowed: float) -> None:
    """The tokens of `backend` are the reference's, but for ties of rounding."""
    few = Rows(
        rows.tokens[:, :256], rows.positions[:256], rows.hidden[:256], rows.weight,
        None if rows.logits is None else rows.logits[:256],
    )  # fmt: skip
    results = [step(few, name).clone() for name in (backend, "reference")]
    assert int((results[0] != results[1]).sum()) <= max(1, allowed * results[0].numel())


# From logits


def test_floor_row_maximum(timed, inputs):
    case = step_case(inputs)
    timed(case, "row maximum", lambda: inputs.logits.max(-1).indices, "floor")


def test_torch_multinomial(timed, inputs):
    timed(step_case(inputs), "multinomial", lambda: multinomial(inputs.logits))


def test_torch_gumbel(timed, inputs):
    timed(step_case(inputs), "Gumbel maximum", lambda: gumbel(inputs.logits))


def test_torch_compiled_gumbel(timed, inputs):
    case = step_case(inputs)
    compiled = rivals.compiled(gumbel, "the Gumbel maximum", lambda call: call(inputs.logits))
    timed(case, "Gumbel, torch.compile", lambda: compiled(inputs.logits))


def test_flashinfer(timed, inputs):
    draw = rivals.flashinfer()
    timed(step_case(inputs), "FlashInfer", lambda: draw(inputs.logits))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ggm_kernels(timed, inputs, backend, device):
    skip_unless_served("glauber_step", backend, device)
    timed(step_case(inputs), name_of(backend), lambda: inputs.step(backend), role_of(backend))
    assert_agrees(inputs, Rows.step, backend, allowed=0.004)


@pytest.mark.parametrize("curve", ["multinomial", "ggm_kernels"])
def test_curves(timed, inputs, device, curve):
    """Time against rows and against the vocabulary."""
    backend = best_backend(device)
    if curve == "multinomial":
        timed(step_case(inputs), curve, lambda: multinomial(inputs.logits))
    else:
        timed(step_case(inputs), name_of(backend), lambda: inputs.step(backend), role_of(backend))


def test_floor_sum(timed, inputs):
    """Adding the logits up once."""

    def total() -> torch.Tensor:
        inputs.need_logits().sum()
        return inputs.tokens

    timed(step_case(inputs), "sum of the logits", total, "floor")


# Small calls


@pytest.mark.parametrize("implementation", ["multinomial", "ggm_kernels"])
@pytest.mark.parametrize("small_size", SMALL_SIZES, ids=str)
def test_small_calls(timed, device, small_size, implementation):
    inputs = make_rows(small_size, device)
    backend = best_backend(device)
    if implementation == "multinomial":
        timed(step_case(inputs), implementation, lambda: multinomial(inputs.logits))
    else:
        timed(step_case(inputs), name_of(backend), lambda: inputs.step(backend), role_of(backend))


# What a call may ask for beside: none may cost a call that does not ask


# Frozen and absent rows with everything are the guard's.
@pytest.mark.parametrize("name", [name for name in ASKED_FOR if "everything" not in name])
def test_asked_for(timed, inputs, device, name):
    if device.type == "cuda":
        pytest.skip("not done there yet")
    arguments = ASKED_FOR[name](inputs)
    timed(step_case(inputs, name), name_of("cpu"), lambda: inputs.step("cpu", **arguments), role_of("cpu"))


# With filters


@pytest.mark.parametrize("implementation", ["sort and multinomial", "ggm_kernels"])
@pytest.mark.parametrize("name", FILTERS)
def test_filters(timed, inputs, device, name, implementation):
    case = step_case(inputs, name, ("torch", lambda: filtered(inputs.logits, **FILTERS[name])))
    backend = best_backend(device)
    if implementation == "ggm_kernels":
        timed(case, name_of(backend), lambda: inputs.step(backend, **FILTERS[name]), role_of(backend))
    else:
        timed(case, *case.rival)


# From hidden states


def test_floor_matrix_product(timed, linear_inputs):
    inputs = linear_inputs
    inputs.need_logits()

    def product() -> torch.Tensor:
        linear(inputs.hidden, inputs.weight)
        return inputs.tokens

    timed(linear_case(inputs), "F.linear", product, "floor")


def test_torch_product_and_multinomial(timed, linear_inputs):
    inputs = linear_inputs
    inputs.need_logits()
    call = lambda: multinomial(linear(inputs.hidden, inputs.weight))  # noqa: E731
    timed(linear_case(inputs), "F.linear, multinomial", call)


def test_product_and_flashinfer(timed, linear_inputs):
    inputs = linear_inputs
    inputs.need_logits()
    draw = rivals.flashinfer()
    timed(linear_case(inputs), "F.linear, FlashInfer", lambda: draw(linear(inputs.hidden, inputs.weight)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ggm_kernels_linear(timed, linear_inputs, backend, device):
    skip_unless_served("linear_glauber_step", backend, device)
    case, role = linear_case(linear_inputs), role_of(backend)
    timed(case, name_of(backend), lambda: linear_inputs.linear_step(backend), role)
    assert_agrees(linear_inputs, Rows.linear_step, backend, allowed=0.004)


def test_ggm_kernels_keep_or_replace(timed, inputs, device):
    """At a noise rate at which few tokens change, few rows need the product."""
    rate = torch.full((1,), 1e-3, device=device)
    backend = best_backend(device)
    call = lambda: inputs.linear_step(backend, noise_rate=rate, normalize=False)  # noqa: E731
    timed(keep_case(inputs), name_of(backend), call, role_of(backend))
