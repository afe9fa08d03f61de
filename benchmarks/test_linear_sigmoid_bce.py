"""The training head: linear_sigmoid_bce against full logits, a hand-written gather, and cross-entropy.

Cross-entropy is another loss, yet what a head over the whole vocabulary trains with: its gradients have the
same shapes. Liger-Kernel and cut-cross-entropy compute it without holding all logits.
"""

from collections.abc import Collection
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import linear, softplus

from benchmarks import rivals
from benchmarks.ceilings import Work
from benchmarks.problems.linear_sigmoid_bce import (
    FLAT_PASSES,
    SHARED,
    SMALL,
    Flatness,
    Head,
    Size,
    make_head,
    pass_of,
    work_of,
)
from benchmarks.recording import BACKENDS, Case, best_backend, name_of, role_of, skip_unless_served
from benchmarks.timing import times_faster
from ggm_kernels import linear_sigmoid_bce

SIZES = [Size()]
# On a GPU as many rows as a training batch predicts, in the precision that heads are trained in there.
# Some rivals take no other.
GPU_HEAD = Size(rows=8192, dtype=torch.bfloat16)
# A forward reads four times what a GPU's cache holds, and few rows of the weight twice.
GPU_BEYOND_CACHE = Size(rows=65536, vocab_size=262144, dtype=torch.bfloat16)
FULL_SIZES = [
    *(Size(vocab_size=vocab_size) for vocab_size in (1024, 4096, 262144)),
    *(Size(count=count) for count in (4, 16, 64)),
    *(Size(hidden_size=hidden_size) for hidden_size in (256, 4096)),
]
# Vocabulary, then rows, then hidden size: few implementations and rows, for the curves.
CURVES = [
    *(Size(rows=256, vocab_size=vocab_size) for vocab_size in (1024, 8192, 50257, 262144)),
    *(Size(rows=rows) for rows in (16, 1024)),
    *(Size(rows=256, hidden_size=hidden_size) for hidden_size in (256, 2048)),
]


# On a GPU the vocabulary alone, with few enough rows that all their logits fit.
GPU_CURVES = [replace(GPU_HEAD, rows=1024, vocab_size=size) for size in (1024, 8192, 50257, 262144)]


def sizes_of(fixtures: Collection[str], on_gpu: bool, full: bool) -> list[Size]:
    """Sizes of a benchmark, told by the fixtures that it asks for; `full` adds to them."""
    if "beyond_cache" in fixtures:
        return [GPU_BEYOND_CACHE] if on_gpu else []
    if "frequent" in fixtures:
        return [GPU_HEAD] if on_gpu else []
    if "curve" in fixtures:
        return GPU_CURVES if on_gpu and not full else CURVES
    few = [GPU_HEAD] if on_gpu else SIZES
    return list(dict.fromkeys([*few, *SIZES, *FULL_SIZES])) if full else few


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        full = metafunc.config.getoption("--bench-full")
        sizes = sizes_of(metafunc.fixturenames, torch.cuda.is_available(), full)
        metafunc.parametrize("size", sizes, ids=str)


@pytest.fixture(scope="module")
def heads() -> dict[Size, Head]:
    return {}


@pytest.fixture
def head(size: Size, device, heads) -> Head:
    if size not in heads:
        heads.clear()
        heads[size] = make_head(size, device)
    return heads[size]


def case_of(head: Head, what: str, form: str = "", rival=None) -> Case:
    """A pass of the loss; the rival interleaved is the hand-written gather unless another is named."""
    rows, count = head.candidates.shape
    dtype = "" if head.hidden.dtype == torch.float32 else f" {head.hidden.dtype}".replace("torch.", "")
    name, loss = rival or ("gather", head.gather)
    return Case(
        f"linear_sigmoid_bce {what}{dtype}{form and ', '}{form}",
        {"N": rows, "C": count, "V": head.weight.shape[0], "d": head.hidden.shape[1]},
        head.hidden.device,
        work_of(head, what),
        (name, pass_of(head, loss, what)),
    )


PASSES = ["forward", "forward+backward"]


def skip_beyond_memory(size: Size, name: str) -> None:
    if name.startswith("full") and size.rows * size.vocab_size * 12 > 8 * 2**30:
        rivals.skip(f"{name} {size}", "its logits would take more than 8 GiB")


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("name", ["gather", "full_logits"])
def test_torch(record, head, size, what, name):
    skip_beyond_memory(size, name)
    record(case_of(head, what), name.replace("_", " "), pass_of(head, getattr(head, name), what))


def test_floor(record, head, size):
    """Summing as many bytes as the forward must read, in order: no kernel that reads them is much faster."""
    record_floor(record, head, size)


def record_floor(record, head: Head, size: Size) -> None:
    case = case_of(head, "forward")
    values = torch.ones(case.work.bytes // size.dtype.itemsize, dtype=size.dtype, device=head.hidden.device)
    total = record(case, "sum of as many bytes", values.sum, "floor")
    torch.testing.assert_close(float(total), float(values.numel()), rtol=1e-2, atol=0)


@pytest.mark.parametrize("what", PASSES)
def test_torch_compile(record, head, what):
    compiled = rivals.compiled(head.gather, "the gather", lambda call: head.step(call)())
    record(case_of(head, what), "gather, torch.compile", pass_of(head, compiled, what))


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ggm_kernels(record, head, size, device, backend, what):
    skip_unless_served("linear_sigmoid_bce", backend, device)
    ours = pass_of(head, lambda: head.ours(backend), what)
    record(case_of(head, what), name_of(backend), ours, role_of(backend))
    assert_equals_gather(head, size.dtype, backend)


@pytest.mark.parametrize("beyond_cache", ["floor", "gather", "cuda", "triton"])
def test_beyond_cache(record, head, size, device, beyond_cache):
    """The forward where what it reads comes from memory: at best its bytes take as long as copying them."""
    case = case_of(head, "forward")
    if beyond_cache == "floor":
        record_floor(record, head, size)
    elif beyond_cache == "gather":
        record(case, "gather", head.gather)
    else:
        skip_unless_served("linear_sigmoid_bce", beyond_cache, device)
        ours = lambda: head.ours(beyond_cache)  # noqa: E731
        loss = record(case, name_of(beyond_cache), ours, role_of(beyond_cache))
        torch.testing.assert_close(loss, head.gather(), rtol=5e-2, atol=5e-2, check_dtype=False)


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("frequent", ["gather", "cuda", "triton"])
def test_frequent_tokens(record, head, size, device, what, frequent):
    """Candidates as in text, one token in a tenth of the rows: some gradients sum many rows."""
    law = 1 / torch.arange(1, size.vocab_size + 1, device=head.hidden.device)
    candidates = torch.multinomial(law, size.rows * size.count, replacement=True).view(size.rows, size.count)
    head = replace(head, candidates=candidates)
    case = case_of(head, what, "frequent tokens")
    if frequent == "gather":
        record(case, "gather", pass_of(head, head.gather, what))
    else:
        skip_unless_served("linear_sigmoid_bce", frequent, device)
        record(case, name_of(frequent), pass_of(head, lambda: head.ours(frequent), what), role_of(frequent))


@pytest.mark.parametrize("curve", ["full_logits", "gather", "ggm_kernels"])
def test_curves(record, head, size, device, curve):
    """Time against the vocabulary, the rows and the hidden size."""
    case, backend = case_of(head, "forward+backward"), best_backend(device)
    if curve == "ggm_kernels":
        record(case, name_of(backend), head.step(lambda: head.ours(backend)), role_of(backend), rounds=5)
    else:
        skip_beyond_memory(size, curve)
        record(case, curve.replace("_", " "), head.step(getattr(head, curve)), rounds=5)


def assert_equals_gather(head: Head, dtype: torch.dtype, backend: str) -> None:
    leaves = [head.hidden, head.weight]
    gradients = torch.autograd.grad(head.ours(backend).sum(), leaves)
    expected = torch.autograd.grad(head.gather().sum(), leaves)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2  # the gather itself rounds to half precision
    near = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(head.ours(backend), head.gather(), **near)
    torch.testing.assert_close(gradients, expected, **near)


# What a head over the whole vocabulary trains with


def cross_entropy_case(head: Head, what: str) -> Case:
    """Another loss in the same place. It needs all logits, and backward two products of that size more."""
    ours = case_of(head, what)
    products = 1 if what == "forward" else 3
    flops = products * 2 * head.hidden.shape[0] * head.weight.numel()
    return replace(ours, work=Work(ours.work.bytes, flops, head.hidden.dtype))


@pytest.mark.parametrize("what", PASSES)
def test_full_cross_entropy(record, head, size, what):
    skip_beyond_memory(size, "full_cross_entropy")
    call = pass_of(head, head.full_cross_entropy, what)
    record(cross_entropy_case(head, what), "full cross-entropy", call)


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("find", rivals.CROSS_ENTROPIES)
def test_rivals(record, head, size, what, find):
    summed_loss = find(size.dtype)
    few = Head(*(part[:64] if part is not head.weight else part for part in vars(head).values()))
    expected = few.full_cross_entropy().sum()
    torch.testing.assert_close(
        few.cross_entropy_by(summed_loss), expected, rtol=1e-2, atol=0, check_dtype=False
    )
    call = pass_of(head, lambda: head.cross_entropy_by(summed_loss), what)
    record(cross_entropy_case(head, what), find.__name__.replace("_", " "), call)


# Shapes of their own


@pytest.mark.parametrize("what", [*PASSES, FLAT_PASSES[1]])
@pytest.mark.parametrize("shared", [0, SHARED])
def test_the_vocabulary_costs_no_time_or_memory(record, heads, device, what, shared):
    """Of one candidate per row, and of one beside those that all rows share."""
    heads.clear()
    flatness = Flatness.of(device, what, shared)
    backend, form = best_backend(device), f"S={shared} shared, " if shared else ""
    case = case_of(flatness.large, what.partition(",")[0], f"{form}against V={SMALL.vocab_size}")
    case = replace(case, op=f"{case.op}{', sparse' * ('sparse' in what)}", work=None if shared else case.work)
    record(case, name_of(backend), flatness.calls[0], role_of(backend), rounds=3)
    memory, memory_of_small = flatness.memory()
    if what in FLAT_PASSES:
        assert memory <= 1.3 * memory_of_small + 2**20
    if record.benchmark.disabled:  # nothing is timed, and other work may run beside it
        return
    notes, name = record.benchmark.extra_info, f"that_of_V={SMALL.vocab_size}"
    # The best of three: work that others do meanwhile makes the ratio larger or smaller, the kernel does not.
    cold = min(flatness.time(device) for _ in range(3))
    notes[f"time_over_{name}"] = round(cold, 2)
    notes[f"time_over_{name}_in_cache"] = round(times_faster(*flatness.calls), 2)
    notes[f"peak_extra_MB_beyond_{name}"] = round((memory - memory_of_small) / 1e6, 1)
    if what in FLAT_PASSES:
        assert cold <= 1.3


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("form", ["per row", "shared"])
@pytest.mark.parametrize("count", [16, 256])
def test_shared_candidates(record, head, size, device, what, form, count):
    """One list of noise tokens for all rows: gathered row by row, or shared, against PyTorch's product."""
    shared = torch.randperm(size.vocab_size, device=head.hidden.device)[:count]

    def per_row() -> torch.Tensor:
        candidates = shared.expand(size.rows, count)
        return linear_sigmoid_bce(head.hidden, head.weight, candidates, 0.0, 1.0)

    def ours() -> torch.Tensor:
        none = shared.new_empty(size.rows, 0)
        return linear_sigmoid_bce(head.hidden, head.weight, none, 0.0, shared_candidates=shared)

    def one_product() -> torch.Tensor:
        return softplus(linear(head.hidden, head.weight[shared]).float()).sum(1)

    tolerance = 1e-3 if size.dtype == torch.float32 else 5e-2
    for loss in (ours, one_product):
        torch.testing.assert_close(loss(), per_row(), rtol=tolerance, atol=tolerance)
    backend = best_backend(device)
    shared_head = replace(head, candidates=shared.expand(size.rows, count))
    case = case_of(shared_head, what, "shared candidates", ("one product", one_product))
    # The list's rows of the weight are read once, not once per row of hidden.
    case = replace(case, work=work_of(replace(head, candidates=shared[None]), what))
    if form == "per row":
        record(case, name_of(backend), pass_of(head, per_row, what), role_of(backend), rounds=3)
    else:
        record(case, f"{name_of(backend)}, shared", pass_of(head, ours, what), role_of(backend), rounds=3)
