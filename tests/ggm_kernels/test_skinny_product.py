"""The core's products of a few rows, and who uses them: what float64 says, whatever sizes, layouts and threads."""

from importlib import import_module

import pytest
import torch
from torch.nn.functional import linear

from ggm_kernels import linear_expected_embedding, linear_glauber_step, native
from ggm_kernels.native.skinny_product import add_weighted_sums, skinny_product

pytestmark = pytest.mark.skipif(native.core is None, reason="no compiled core")
ISAS = [pytest.param(name, id=f"cpu-{name}") for name in (native.core.isas() if native.core else [])]
# Rows on both sides of each panel, tokens on both sides of each block and part, sums on both sides of a chain.
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 32, 33, 49, 128]
TOKENS = [1, 3, 4, 11, 12, 13, 24, 25, 191, 192, 193, 1000]
SIZES = [128, 255, 256, 257, 600]


@pytest.fixture
def isa(request):
    """An instruction set, in use until the end of the test."""
    before = native.core.isa()
    assert native.core.select_isa(request.param)
    yield request.param
    native.core.select_isa(before)


def has_fused_sums(isa):
    return isa in ("v3", "v4")


def factors(rows, tokens, size, seed=0):
    """With rows that do not follow each other, and logits in the midst of others."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, size + 3, generator=generator)[:, :size]
    weight = torch.randn(tokens, size + 1, generator=generator)[:, 1:]
    around = torch.full((rows + 1, tokens + 5), 7.0)
    return hidden, weight, torch.randn(tokens, generator=generator), around


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("rows", ROWS)
def test_product_is_that_of_float64(isa, rows):
    for number, tokens in enumerate(TOKENS):
        size = SIZES[(number + rows) % len(SIZES)]
        hidden, weight, bias, around = factors(rows, tokens, size)
        for given in (None, bias):
            around.fill_(7.0)
            out = around[:rows, :tokens]
            assert skinny_product(hidden, weight, given, out) == has_fused_sums(isa)
            if not has_fused_sums(isa):
                assert around.eq(7).all()
                continue
            exact = linear(hidden.double(), weight.double(), None if given is None else given.double())
            torch.testing.assert_close(out.double(), exact, rtol=0, atol=6e-6 * size**0.5)
            assert around[:rows, tokens:].eq(7).all() and around[rows].eq(7).all()


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_in_half_precision_is_rounded_once(isa, dtype):
    for rows in (1, 2, 5):
        for tokens, size in ((1, 128), (13, 130), (193, 257)):
            hidden, weight, bias, around = (given.to(dtype) for given in factors(rows, tokens, size))
            out = around[:rows, :tokens]
            assert skinny_product(hidden, weight, bias, out) == has_fused_sums(isa)
            if not has_fused_sums(isa):
                continue
            exact = linear(hidden.double(), weight.double(), bias.double())
            allowed = torch.finfo(dtype).eps * exact.abs() / 2 + 6e-6 * size**0.5
            assert ((out.double() - exact).abs() <= allowed).all()
            assert around[:rows, tokens:].eq(7).all() and around[rows].eq(7).all()


@pytest.mark.parametrize("rows", [3, 9])
@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_bits_depend_on_nothing_but_the_two_rows_of_a_logit(isa, rows):
    """Not on threads, on other rows of as many, on the place among rows or tokens."""
    if not has_fused_sums(isa):
        pytest.skip("leaves products to the library")
    all_rows = 7 if rows == 3 else 40
    hidden, weight, bias, _ = factors(all_rows, 5000, 300)
    whole, part, other = torch.empty(all_rows, 5000), torch.empty(rows, 997), torch.empty(all_rows, 5000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert skinny_product(hidden, weight, bias, whole)
        torch.set_num_threads(3)
        assert skinny_product(hidden, weight, bias, other)
    finally:
        torch.set_num_threads(threads)
    first = all_rows - rows - 2
    assert skinny_product(hidden[first : first + rows], weight[1001:1998], bias[1001:1998], part)
    assert torch.equal(whole, other) and torch.equal(whole[first : first + rows, 1001:1998], part)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_infinite_and_nan_weights_stay_with_their_tokens(isa):
    if not has_fused_sums(isa):
        pytest.skip("leaves products to the library")
    for rows in (2, 9):
        hidden, weight, _, _ = factors(rows, 100, 130)
        weight, out = weight.contiguous(), torch.empty(rows, 100)
        weight[7, 3], weight[50, 129], weight[99, 0] = torch.nan, torch.inf, -torch.inf
        assert skinny_product(hidden, weight, None, out)
        assert out[:, 7].isnan().all() and out[:, [50, 99]].isinf().all()
        out[:, [7, 50, 99]] = 0
        assert out.isfinite().all()


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 12, 15, 16, 32])
def test_weighted_sums_are_those_of_float64(isa, count):
    """Terms on both sides of a chunk; columns of whole parts, of vectors beside them, and of less than a vector."""
    for number, terms in enumerate([0, 1, 127, 128, 129, 700]):
        columns = [128, 144, 193, 255, 600][(number + count) % 5]
        weights, transposed, _, around = factors(count, columns, max(terms, 1), seed=number)
        weights, rows = weights[:, :terms], transposed.T.contiguous()[:terms]
        totals = around[:count, :columns]
        assert add_weighted_sums(totals, weights, rows) == has_fused_sums(isa)
        exact = 7 + weights.double() @ rows.double() if has_fused_sums(isa) else torch.full((), 7.0).double()
        torch.testing.assert_close(totals.double(), exact.expand(totals.shape), rtol=0, atol=2e-4)
        assert around[:count, columns:].eq(7).all() and around[count].eq(7).all()


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_bits_of_weighted_sums_depend_on_no_threads_and_no_other_rows(isa):
    if not has_fused_sums(isa):
        pytest.skip("leaves products to the library")
    weights, transposed, _, _ = factors(19, 300, 2000)
    rows, threads = transposed.T.contiguous(), torch.get_num_threads()
    whole, other, part = torch.zeros(19, 300), torch.zeros(19, 300), torch.zeros(9, 300)
    try:
        torch.set_num_threads(1)
        assert add_weighted_sums(whole, weights, rows)
        torch.set_num_threads(3)
        assert add_weighted_sums(other, weights, rows)
    finally:
        torch.set_num_threads(threads)
    assert add_weighted_sums(part, weights[5:14], rows)
    assert torch.equal(whole, other) and torch.equal(whole[5:14], part)


@pytest.mark.parametrize(
    ("rows", "size", "dtype"),
    [
        (0, 128, torch.float32),
        (129, 128, torch.float32),
        (8, 127, torch.float32),
        (8, 128, torch.float64),
        (6, 128, torch.bfloat16),
    ],
)
def test_what_the_library_does_as_well_is_left_to_it(rows, size, dtype):
    hidden, weight = torch.zeros(rows, size, dtype=dtype), torch.zeros(5, size, dtype=dtype)
    out = torch.full((rows, 5), 7.0, dtype=dtype)
    assert not skinny_product(hidden, weight, None, out) and out.eq(7).all()


@pytest.fixture
def products(monkeypatch):
    """How many products the core made."""
    made = []

    def counted(product):
        def call(*arguments):
            made.append(product(*arguments))
            return made[-1]

        return call

    users = [
        import_module(f"ggm_kernels.native.{name}") for name in ("glauber_step", "linear_expected_embedding")
    ]
    for user in users:
        monkeypatch.setattr(user, "skinny_product", counted(skinny_product))
    monkeypatch.setattr(users[1], "add_weighted_sums", counted(add_weighted_sums))
    return made


# A fifth of the rows is frozen. Tiles of the 8 that are left of 10 have 32,768 tokens, of the 80 of 100 3,072.
STEPS = [(1, 5000), (5, 60_000), (10, 32_767), (10, 32_768), (10, 32_769), (32, 9000), (100, 3073), (16, 700)]
CHANGES = [{}, {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.0}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_cpu_steps_from_few_rows_are_steps_on_their_logits(changes, products):
    """By-products and frozen rows among the options, vocabularies on both sides of a tile."""
    for rows, tokens in STEPS:
        hidden, weight, bias, _ = factors(rows, tokens, 130)
        factors_of_step = {"hidden": hidden[:, None], "weight": weight / 130**0.5, "bias": bias}
        frozen = torch.arange(rows)[:, None] % 5 == 1
        drawn, said = {}, {}
        for backend in ("cpu", "reference"):
            names = ("log_sum_exp", "log_prob", "entropy", "margin")
            said[backend] = {name: torch.full((rows, 1), 7.0) for name in names}
            drawn[backend] = linear_glauber_step(
                torch.zeros(rows, 1, dtype=torch.int64),
                positions=torch.zeros(1, dtype=torch.int64),
                seed=3,
                step=5,
                frozen=frozen,
                backend=backend,
                **factors_of_step,
                **said[backend],
                **changes,
            )
        # Which token wins may hang by a rounding, in one row of many.
        same = drawn["cpu"] == drawn["reference"]
        assert (~same).sum() <= rows // 32, (rows, tokens)
        for name, ours in said["cpu"].items():
            expected = said["reference"][name]
            compared = same if name == "log_prob" else torch.ones_like(same)
            torch.testing.assert_close(
                ours[compared], expected[compared], equal_nan=True, rtol=1e-5, atol=2e-5, msg=name
            )
    assert len(products) >= len(STEPS) and all(products) == has_fused_sums(native.core.isa())


@pytest.mark.parametrize("rows", [1, 20])
def test_cpu_expected_embeddings_of_few_rows(products, rows):
    hidden, weight, bias, _ = factors(rows, 5000, 130)
    weight = weight / 130**0.5
    ours = linear_expected_embedding(hidden, weight, weight, bias=bias, backend="cpu")
    expected = linear_expected_embedding(hidden, weight, weight, bias=bias, backend="reference")
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert len(products) == 4 and all(products) == has_fused_sums(native.core.isa())
