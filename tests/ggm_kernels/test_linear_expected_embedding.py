"""`linear_expected_embedding` against its formula, as an operator, and its errors before work."""

import pytest
import torch
from expected_embedding_problem import OPTIONS, formula, problem

from ggm_kernels import linear_expected_embedding

OP = "linear_expected_embedding"
# Rows, tokens, d, e: one of each, less than a tile, several tiles and blocks of rows.
SIZES = [(1, 1, 1, 1), (7, 19, 5, 3), (600, 9000, 4, 6)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_formula_with_gradients(backend, size, options, tied):
    hidden, weight, embedding, bias = leaves = problem(size, tied=tied)
    options = OPTIONS[options](size[0], torch.Generator().manual_seed(2))
    given = linear_expected_embedding(hidden, weight, embedding, bias=bias, backend=backend, **options)
    expected = formula(*leaves, **options)
    torch.testing.assert_close(given.double(), expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn(given.shape, generator=torch.Generator().manual_seed(3))
    for one, other in zip(
        torch.autograd.grad(given, leaves, grad),
        torch.autograd.grad(expected, leaves, grad.double()),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    with pytest.raises(AssertionError):  # a temperature forgotten, or one too many
        wrong = formula(*leaves, softcap=1.0, temperature=0.5) + 1e-3
        torch.testing.assert_close(given.double(), wrong, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(backend, dtype):
    leaves = problem((7, 40, 5, 3), dtype)
    given = linear_expected_embedding(*leaves[:3], bias=leaves[3], backend=backend)
    assert given.dtype == dtype
    torch.testing.assert_close(given.double(), formula(*leaves), rtol=2e-2, atol=2e-2)
    assert all(
        grad.dtype == dtype and grad.isfinite().all() for grad in torch.autograd.grad(given.sum(), leaves)
    )


def test_only_what_is_asked_for(backend):
    hidden, weight, embedding, bias = problem(SIZES[1])
    for only in (hidden, weight, embedding, bias):
        detached = [value if value is only else value.detach() for value in (hidden, weight, embedding, bias)]
        mean = linear_expected_embedding(*detached[:3], bias=detached[3], backend=backend)
        expected = torch.autograd.grad(formula(hidden, weight, embedding, bias).square().sum(), only)
        given = torch.autograd.grad(mean.square().sum(), only)
        torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-4)


def test_opcheck_and_compiled(backend):
    hidden, weight, embedding, bias = problem(SIZES[1])
    op = torch.ops.ggm_kernels.linear_expected_embedding.default
    torch.library.opcheck(op, (hidden, weight, embedding, bias, 2.0, torch.tensor(0.5), backend))
    torch._dynamo.reset()
    call = lambda: linear_expected_embedding(hidden, weight, embedding, backend=backend)  # noqa: E731
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(), call())


def test_float64_is_exact():
    leaves = [value.detach().double().requires_grad_() for value in problem(SIZES[1])]
    call = lambda h, w, e, b: linear_expected_embedding(  # noqa: E731
        h, w, e, bias=b, softcap=2.0, temperature=0.8
    )
    assert torch.autograd.gradcheck(call, leaves)


def test_rows_without_a_law_and_empty_batches(backend):
    hidden, weight, embedding, bias = (value.detach() for value in problem(SIZES[1]))
    hidden[2] = torch.nan
    mean = linear_expected_embedding(hidden, weight, embedding, backend=backend)
    assert mean[2].isnan().all() and mean[[0, 1, 3]].isfinite().all()
    bias[:-1] = -torch.inf
    only = linear_expected_embedding(hidden[:1], weight, embedding, bias=bias, backend=backend)
    torch.testing.assert_close(only, embedding[-1:])
    assert linear_expected_embedding(hidden[:0], weight, embedding, backend=backend).shape == (0, 3)


def test_autocast_casts_as_it_does_for_linear(backend):
    hidden, weight, embedding, bias = problem(SIZES[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean = linear_expected_embedding(hidden, weight, embedding, bias=bias, backend=backend)
        mixed = linear_expected_embedding(hidden.bfloat16(), weight, embedding, bias=bias, backend=backend)
        tied = linear_expected_embedding(hidden, weight, weight, bias=bias, backend=backend)
    cast = [value.bfloat16() for value in (hidden, weight, embedding, bias)]
    expected = linear_expected_embedding(*cast[:3], bias=cast[3], backend=backend)
    assert mean.dtype == mixed.dtype == tied.dtype == torch.bfloat16
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(
        tied, linear_expected_embedding(cast[0], cast[1], cast[1], bias=cast[3], backend=backend)
    )
    for gradient in torch.autograd.grad(mean.float().square().sum(), (hidden, weight, embedding, bias)):
        assert gradient.dtype == torch.float32 and gradient.abs().sum() > 0


def test_errors_name_the_argument():
    hidden, weight, embedding, _ = problem(SIZES[1])
    for arguments, options, error, words in [
        (
            (hidden, weight, embedding[:3]),
            {},
            ValueError,
            r"embedding: got shape \(3, 3\); allowed: \(19, e\)",
        ),
        ((hidden, weight, embedding.half()), {}, TypeError, "embedding: got dtype torch.float16"),
        ((hidden, weight, embedding), {"temperature": 0.0}, ValueError, "temperature: got 0.0"),
        (
            (hidden, weight, embedding),
            {"temperature": torch.zeros(7)},
            ValueError,
            r"temperature\[0\]: got 0",
        ),
        ((hidden, weight, embedding), {"softcap": -1.0}, ValueError, "softcap: got -1.0"),
        ((hidden, weight[:0], embedding[:0]), {}, ValueError, "weight: got shape"),
        ((hidden, weight.to("meta"), embedding), {}, ValueError, "weight: got device meta; allowed: cpu"),
        ((hidden.to("meta"), weight.half(), embedding), {}, TypeError, "weight: got dtype torch.float16"),
    ]:
        with pytest.raises(error, match=words):
            linear_expected_embedding(*arguments, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "size", [(140, 600, 1030, 20), (16, 300, 1030, 40), (3, 300, 70, 9), (520, 4200, 33, 20)], ids=str
)
def test_results_are_the_same_to_the_bit_on_any_number_of_threads(size, dtype):
    """Shapes whose products a library cuts up by the number of threads among them."""
    leaves, threads, found = problem(size, dtype), torch.get_num_threads(), []
    hidden, weight, embedding, bias = leaves
    grad = torch.randn(size[0], size[3], generator=torch.Generator().manual_seed(3)).to(dtype)
    for number in (1, 2, 3, 8):
        torch.set_num_threads(number)
        try:
            mean = linear_expected_embedding(hidden, weight, embedding, bias=bias, softcap=3.0, backend="cpu")
            found.append([mean, *torch.autograd.grad(mean, leaves, grad)])
        finally:
            torch.set_num_threads(threads)
    assert all(all(map(torch.equal, results, found[0])) for results in found)
