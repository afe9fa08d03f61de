"""`corrupt` and `random_tokens`: one law, the same bits on every backend, errors before work."""

import itertools

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import check_independence, check_law, check_rate

from ggm_kernels import NoiseLaw, Stream, backends, corrupt, native, random_tokens
from ggm_kernels.reference import philox

OP = "corrupt"
VOCABS = [1, 2, 17, 50257, 2**31 - 1]
LENGTHS = [1, 2, 3, 15, 16, 17, 255, 256, 257, 1025]


def batch_of(batch, length, vocab_size, dtype=torch.int64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab_size, (batch, length), generator=generator).to(dtype)
    return tokens, torch.rand(batch, generator=generator)


def some_noise(vocab_size, seed=0):
    probs = torch.rand(vocab_size, generator=torch.Generator().manual_seed(seed)).pow(8).double()
    return NoiseLaw(probs / probs.sum())


def assert_same(a, b):
    assert a[0].dtype == b[0].dtype and a[1].dtype == b[1].dtype == torch.bool
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


# One law, the same bits


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("vocab_size", VOCABS)
def test_backends_agree_to_the_bit(backend, vocab_size, dtype):
    for batch, length in [(1, 1), (3, 257), (2, 1025), (5, 16), (0, 4), (4, 0)]:
        tokens, keep_prob = batch_of(batch, length, vocab_size, dtype)
        expected = corrupt(tokens, keep_prob, vocab_size, seed=2**64 - 1, step=5, backend="reference")
        assert_same(
            corrupt(tokens, keep_prob, vocab_size, seed=2**64 - 1, step=5, backend=backend),
            expected,
        )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("vocab_size", VOCABS)
def test_backends_agree_to_the_bit_on_every_size(backend, vocab_size, dtype):
    batches = [1, 2, 3, 7, 64, 300] if backend != "triton" else [1, 2, 300]
    for batch, length in itertools.product(batches, LENGTHS if batches[-2] == 64 else [1, 17, 257, 1025]):
        tokens, keep_prob = batch_of(batch, length, vocab_size, dtype)
        expected = corrupt(tokens, keep_prob, vocab_size, seed=1, backend="reference")
        assert_same(corrupt(tokens, keep_prob, vocab_size, seed=1, backend=backend), expected)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_backends_agree_on_every_argument(backend, data):
    batch, length = data.draw(st.integers(1, 4)), data.draw(st.sampled_from(LENGTHS))
    vocab_size = data.draw(st.sampled_from([1, 2, 17, 1000]))
    tokens, keep_prob = batch_of(
        batch, length, vocab_size, data.draw(st.sampled_from([torch.int32, torch.int64]))
    )
    if data.draw(st.booleans()):
        keep_prob = torch.rand(batch, length, generator=torch.Generator().manual_seed(1))
        keep_prob = keep_prob.pow(data.draw(st.sampled_from([0.0, 1.0, 30.0])))  # 1, uniform, mostly tiny
    keep_prob = keep_prob.to(data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])))
    arguments = {
        "seed": data.draw(st.integers(0, 2**64 - 1)),
        "step": data.draw(st.integers(0, 2**32 - 1)),
        "sample_ids": data.draw(st.sampled_from([None, torch.randint(2**40, (batch,))])),
        "frozen": data.draw(st.sampled_from([None, tokens % 3 == 0])),
        "noise": data.draw(st.sampled_from([None, some_noise(vocab_size)])),
    }
    expected = corrupt(tokens, keep_prob, vocab_size, **arguments, backend="reference")
    assert_same(corrupt(tokens, keep_prob, vocab_size, **arguments, backend=backend), expected)


@pytest.mark.skipif(native.core is None, reason="no compiled core")
@pytest.mark.parametrize("isa", native.core.isas() if native.core else [])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_instruction_sets_and_threads_change_nothing(isa, threads):
    tokens, keep_prob = batch_of(9, 5000, 50257)
    expected = corrupt(tokens, keep_prob, 50257, seed=3, noise=some_noise(50257), backend="reference")
    before, threads_before = native.core.isa(), torch.get_num_threads()
    native.core.select_isa(isa)
    torch.set_num_threads(threads)
    try:
        given_result = corrupt(tokens, keep_prob, 50257, seed=3, noise=some_noise(50257), backend="cpu")
    finally:
        native.core.select_isa(before)
        torch.set_num_threads(threads_before)
    assert_same(given_result, expected)


def test_splitting_the_batch_changes_nothing(backend):
    tokens, keep_prob = batch_of(6, 33, 17)
    ids = torch.tensor([5, 2**40 - 1, 0, 7, 2**33, 2**32])
    whole = corrupt(tokens, keep_prob, 17, seed=9, step=1, sample_ids=ids, backend=backend)
    for rows in ([0, 1, 2], [3], [5, 4]):
        part = corrupt(
            tokens[rows], keep_prob[rows], 17, seed=9, step=1, sample_ids=ids[rows], backend=backend
        )
        assert_same(part, (whole[0][rows], whole[1][rows]))


def test_a_prefix_of_the_sequence_gets_a_prefix_of_the_noise(backend):
    tokens, keep_prob = batch_of(2, 300, 17)
    whole = corrupt(tokens, keep_prob, 17, seed=9, backend=backend)
    part = corrupt(tokens[:, :77], keep_prob, 17, seed=9, backend=backend)
    assert_same(part, (whole[0][:, :77], whole[1][:, :77]))


def test_default_sample_ids_count_from_zero(backend):
    tokens, keep_prob = batch_of(3, 40, 17)
    a = corrupt(tokens, keep_prob, 17, seed=1, backend=backend)
    assert_same(a, corrupt(tokens, keep_prob, 17, seed=1, sample_ids=torch.arange(3), backend=backend))


def test_a_step_held_in_a_tensor_is_the_same_step(backend):
    tokens, keep_prob = batch_of(3, 40, 17)
    a = corrupt(tokens, keep_prob, 17, seed=1, step=2**32 - 1, backend=backend)
    assert_same(a, corrupt(tokens, keep_prob, 17, seed=1, step=torch.tensor(2**32 - 1), backend=backend))


def test_strided_inputs(backend):
    tokens, keep_prob = batch_of(6, 40, 17)
    frozen = tokens % 2 == 0
    expected = corrupt(
        tokens[::2, 1::3].contiguous(), keep_prob[::2].contiguous(), 17, seed=1,
        frozen=frozen[::2, 1::3].contiguous(), backend=backend,
    )  # fmt: skip
    strided = corrupt(
        tokens[::2, 1::3], keep_prob[::2], 17, seed=1, frozen=frozen[::2, 1::3], backend=backend
    )
    assert_same(strided, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shapes_and_types_of_the_probability(backend, dtype):
    tokens, keep_prob = batch_of(5, 300, 17)
    keep_prob = keep_prob.to(dtype)
    arguments = {"vocab_size": 17, "seed": 3, "backend": backend}
    expected = corrupt(tokens, keep_prob.float(), **arguments, noise=None)
    for form in (keep_prob, keep_prob[:, None], keep_prob[:, None].expand(5, 300)):
        assert_same(corrupt(tokens, form, **arguments), expected)
    one = float(keep_prob[2])
    expected = corrupt(tokens, torch.full((5,), one), **arguments)
    for form in (one, keep_prob[2], torch.full((5, 300), one, dtype=dtype)):
        assert_same(corrupt(tokens, form, **arguments), expected)
    column = tokens[:, :1]  # [B, 1] is [B, L]
    assert_same(corrupt(column, keep_prob[:, None], **arguments), corrupt(column, keep_prob, **arguments))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_shapes_of_the_probability_of_empty_batches(backend, shape):
    for form in (0.5, torch.tensor(0.5), torch.rand(shape[0]), torch.rand(shape[0], 1), torch.rand(shape)):
        assert corrupt(torch.zeros(shape).long(), form, 17, seed=1, backend=backend)[0].shape == shape


# A single noise token


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("mask_id", [0, 4, 16])
def test_absorbing_noise_is_its_alias_table(backend, mask_id, dtype):
    tokens, keep_prob = batch_of(3, 1025, 17, dtype)
    arguments = {"vocab_size": 17, "seed": 5, "step": 2, "frozen": tokens == 3, "backend": backend}
    table = NoiseLaw.absorbing(17, mask_id).table(torch.device("cpu"))
    by_table = torch.ops.ggm_kernels.corrupt(
        tokens, keep_prob, 17, 5, 2, None, None, tokens == 3, table, 0, backend
    )
    for law in (NoiseLaw.absorbing(17, mask_id), NoiseLaw(torch.eye(17)[mask_id])):
        noisy, is_signal = corrupt(tokens, keep_prob, noise=law, **arguments)
        assert_same((noisy, is_signal), by_table)
        assert (noisy[~is_signal] == mask_id).all()
        assert torch.equal(is_signal, corrupt(tokens, keep_prob, **arguments)[1])  # as uniform noise decides


@pytest.mark.parametrize("vocab_size", VOCABS)
def test_a_mask_beside_the_tokens(backend, vocab_size):
    tokens, keep_prob = batch_of(2, 300, vocab_size)
    tokens[:, ::7] = vocab_size  # masked already
    law = NoiseLaw.absorbing(vocab_size, vocab_size)
    noisy, is_signal = corrupt(tokens, keep_prob, vocab_size, seed=5, noise=law, backend=backend)
    assert torch.equal(noisy, torch.where(is_signal, tokens, vocab_size))
    tokens[1, 3] = vocab_size + 1
    with pytest.raises(IndexError, match=rf"tokens\[1, 3\]: got {vocab_size + 1}"):
        corrupt(tokens, keep_prob, vocab_size, seed=5, noise=law, backend=backend)
    tokens[1, 3] = vocab_size  # no token where another law, or none, is meant
    with pytest.raises(IndexError, match=rf"tokens\[0, 0\]: got {vocab_size}; allowed: \[0, {vocab_size}\)"):
        corrupt(tokens, keep_prob, vocab_size, seed=5, backend=backend)


# What it means


def test_signal_is_the_token_and_inputs_stay(backend):
    tokens, keep_prob = batch_of(4, 200, 1000)
    before = tokens.clone()
    noisy, is_signal = corrupt(tokens, keep_prob, 1000, seed=1, backend=backend)
    assert torch.equal(tokens, before)
    assert torch.equal(noisy[is_signal], tokens[is_signal])
    assert ((noisy >= 0) & (noisy < 1000)).all()


def test_probabilities_zero_and_one_are_certain(backend):
    tokens = torch.zeros(2, 2**16, dtype=torch.int64)
    _, is_signal = corrupt(tokens, torch.tensor([0.0, 1.0]), 17, seed=1, backend=backend)
    assert not is_signal[0].any()
    assert is_signal[1].all()


def test_noise_equal_to_the_old_token_is_noise(backend):
    tokens = torch.zeros(1, 64, dtype=torch.int64)
    noisy, is_signal = corrupt(tokens, torch.zeros(1), 1, seed=1, backend=backend)
    assert torch.equal(noisy, tokens)
    assert not is_signal.any()


def test_frozen_positions_are_signal_and_the_others_unmoved(backend):
    tokens, _ = batch_of(4, 100, 17)
    frozen = torch.rand(4, 100, generator=torch.Generator().manual_seed(2)) < 0.5
    keep_prob = torch.full((4,), 0.3)
    free = corrupt(tokens, keep_prob, 17, seed=1, backend=backend)
    noisy, is_signal = corrupt(tokens, keep_prob, 17, seed=1, frozen=frozen, backend=backend)
    assert torch.equal(noisy[frozen], tokens[frozen])
    assert is_signal[frozen].all()
    assert torch.equal(noisy[~frozen], free[0][~frozen])
    assert torch.equal(is_signal[~frozen], free[1][~frozen])


# The law. Each check takes noisy tokens, and must refuse those of a broken sampler.


def noise_of(backend, vocab_size=5, batch=16, length=2000, keep=0.0, **arguments):
    tokens = torch.zeros(batch, length, dtype=torch.int64)
    return corrupt(tokens, torch.full((batch,), keep), vocab_size, backend=backend, **arguments)


@pytest.mark.parametrize("keep", [0.001, 0.25, 0.5, 0.999])
def test_keep_rate(backend, keep):
    check_rate(noise_of(backend, seed=11, keep=keep)[1], keep)


@pytest.mark.parametrize("vocab_size", [2, 5, 1000])
def test_uniform_noise(backend, vocab_size):
    noisy, _ = noise_of(backend, vocab_size, seed=12)
    check_law(noisy, torch.full((vocab_size,), 1 / vocab_size, dtype=torch.float64))


@pytest.mark.parametrize("vocab_size", [3, 5, 300])
def test_noise_follows_its_law(backend, vocab_size):
    noise = some_noise(vocab_size)
    probs = noise.probs.clone()
    probs[vocab_size // 2] = 0
    noise = NoiseLaw(probs / probs.sum())
    noisy, _ = noise_of(backend, vocab_size, seed=13, noise=noise)
    check_law(noisy, noise.probs)


def test_noise_is_independent_across_every_coordinate(backend):
    base, _ = noise_of(backend, seed=1)
    check_independence(base[:, :-1], base[:, 1:], 5)  # neighbours, which share a Philox call or do not
    check_independence(base[:, :-2], base[:, 2:], 5)
    check_independence(base[:-1], base[1:], 5)
    check_independence(base, noise_of(backend, seed=2)[0], 5)
    check_independence(base, noise_of(backend, seed=1, step=1)[0], 5)
    # Streams built by adding ids collide here.
    shifted, _ = noise_of(backend, seed=0, sample_ids=torch.arange(1, 17))
    check_independence(base, shifted, 5)


def test_keeping_is_independent_of_the_noise_drawn(backend):
    tokens = torch.zeros(16, 2000, dtype=torch.int64)
    _, is_signal = corrupt(tokens, torch.full((16,), 0.5), 2, seed=1, backend=backend)
    noise, _ = noise_of(backend, 2, seed=1)
    check_independence(is_signal.long(), noise, 2)


def test_the_checks_refuse_broken_samplers():
    noisy, is_signal = noise_of("reference", seed=1, keep=0.25)
    drawn, _ = noise_of("reference", seed=1)
    uniform = torch.full((5,), 0.2, dtype=torch.float64)
    with pytest.raises(AssertionError):  # flipped label
        check_rate(~is_signal, 0.25)
    with pytest.raises(AssertionError):  # kept zeros counted as noise
        check_law(noisy, uniform)
    with pytest.raises(AssertionError):  # modulo of too few bits
        check_law(drawn % 4, uniform)
    with pytest.raises(AssertionError):  # a forbidden token
        check_law(drawn, torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25]).double())
    tiled = drawn[:, :64].repeat(1, 20)
    with pytest.raises(AssertionError):  # noise keyed by a tile of 64 positions
        check_independence(tiled[:, :-64], tiled[:, 64:], 5)
    with pytest.raises(AssertionError):  # noise shared by the rows of a batch
        check_independence(drawn[:1].repeat(15, 1), drawn[:1].repeat(15, 1), 5)

    def seed_plus_id(seed, ids):
        zero = torch.zeros(1, dtype=torch.int64)
        rows = [noise_of("reference", batch=1, seed=seed + i, sample_ids=zero)[0] for i in ids]
        return torch.cat(rows)

    with pytest.raises(AssertionError):  # ids added to the seed
        check_independence(seed_plus_id(1, range(16)), seed_plus_id(0, range(1, 17)), 5)


def test_random_tokens_have_streams_of_their_own(backend):
    ids = torch.arange(16)
    streams = [Stream.INITIAL, Stream.CANDIDATES, Stream.VISIT_ORDER, Stream.TIME]
    draws = [random_tokens(ids, 2000, 5, stream=s, seed=1, backend=backend) for s in streams]
    for a, b in itertools.combinations([*draws, noise_of(backend, seed=1)[0]], 2):
        check_independence(a, b, 5)
    check_law(draws[0], torch.full((5,), 0.2, dtype=torch.float64))
    assert torch.equal(
        draws[0], random_tokens(ids, 2000, 5, stream=Stream.INITIAL, seed=1, backend="reference")
    )


@pytest.mark.parametrize("stream", [Stream.CORRUPT, Stream.RACE, Stream.KEEP, Stream.COMMIT])
def test_random_tokens_keep_off_the_streams_of_ops(stream):
    with pytest.raises(ValueError, match="stream: got"):
        random_tokens(torch.arange(2), 3, 5, stream=stream, seed=1)


def test_random_tokens_do_not_depend_on_the_default_dtype(backend):
    arguments = {"stream": Stream.INITIAL, "seed": 1, "backend": backend}
    expected = random_tokens(torch.arange(2), 3, 5, **arguments)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(random_tokens(torch.arange(2), 3, 5, **arguments), expected)
    finally:
        torch.set_default_dtype(torch.float32)


# The operator


def test_opcheck(backend):
    tokens, keep_prob = batch_of(3, 9, 17)
    op = torch.ops.ggm_kernels.corrupt.default
    table = some_noise(17).table(torch.device("cpu"))
    for noise_table, ids in [(None, None), (table, torch.arange(3))]:
        torch.library.opcheck(op, (tokens, keep_prob, 17, 1, 2, None, ids, None, noise_table, 0, backend))
    torch.library.opcheck(
        op, (tokens, keep_prob, 17, 1, 0, torch.tensor(4), None, tokens > 3, None, 0, backend)
    )
    torch.library.opcheck(
        op, (tokens, keep_prob[0].double(), 17, 1, 0, None, None, None, None, 0, backend, 17)
    )


def test_compiles_as_one_graph_and_seeds_do_not_recompile(backend):
    torch._dynamo.reset()
    tokens, keep_prob = batch_of(3, 9, 17)

    def draw(seed, step):
        return corrupt(tokens, keep_prob, 17, seed=seed, step=step, backend=backend)

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for seed in range(2, 8):
        assert_same(compiled(seed, seed * 3), draw(seed, seed * 3))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # constant, then symbolic


def test_compiles_with_every_form_of_probability_and_absorbing_noise(backend):
    torch._dynamo.reset()
    tokens, keep_prob = batch_of(3, 9, 17)
    law = NoiseLaw.absorbing(17, 17)

    def draw(tokens, keep_prob):
        return corrupt(tokens, keep_prob, 17, seed=1, noise=law, backend=backend)

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    for form in (0.25, 0.5, 0.75, keep_prob[0].double(), keep_prob.double(), keep_prob[:, None]):
        assert_same(compiled(tokens, form), draw(tokens, form))


def test_a_law_that_was_not_used_before_compiles(backend):
    """Its table is there from the start: no graph could build it."""
    torch._dynamo.reset()
    tokens, keep_prob = batch_of(3, 9, 17)
    law, same = (NoiseLaw(torch.arange(1.0, 18) / 153) for _ in range(2))

    def draw(law):
        return corrupt(tokens, keep_prob, 17, seed=1, noise=law, backend=backend)

    assert_same(torch.compile(draw, fullgraph=True, backend="aot_eager")(law), draw(same))


# Errors before work

TOKENS, KEEP = batch_of(2, 3, 7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": [[1]]}, TypeError, "tokens: got list"),
        ({"tokens": TOKENS.float()}, TypeError, "tokens: got dtype torch.float32"),
        ({"tokens": TOKENS[0]}, ValueError, r"tokens: got shape \(3,\); allowed: a 2-d tensor"),
        ({"tokens": TOKENS.to_sparse()}, TypeError, "tokens: got layout torch.sparse_coo"),
        ({"tokens": TOKENS.to("meta")}, ValueError, "keep_prob: got device cpu; allowed: meta"),
        ({"keep_prob": [0.5, 0.5]}, TypeError, "keep_prob: got list; allowed: a float or a torch.Tensor"),
        ({"keep_prob": True}, TypeError, "keep_prob: got bool; allowed: a float"),
        ({"keep_prob": 1.1}, ValueError, "keep_prob: got 1.1; allowed: finite and 0 <= keep_prob <= 1"),
        ({"keep_prob": float("nan")}, ValueError, "keep_prob: got nan"),
        ({"keep_prob": TOKENS}, TypeError, "keep_prob: got dtype torch.int64"),
        ({"keep_prob": KEEP[:1]}, ValueError, r"keep_prob: got shape \(1,\); allowed: \(\) or \(2,\) or \(2, 1\) or \(2, 3\)"),
        ({"keep_prob": torch.tensor(1.5)}, ValueError, "keep_prob: got 1.5; allowed"),
        ({"keep_prob": torch.tensor([[0.1], [-0.5]])}, ValueError, r"keep_prob\[1\]: got -0.5"),
        ({"keep_prob": torch.tensor([0.5, 1 + 1e-12], dtype=torch.float64)}, ValueError, r"keep_prob\[1\]: got 1.000000000001"),
        ({"keep_prob": torch.tensor([0.1, 1.5])}, ValueError, r"keep_prob\[1\]: got 1.5; allowed: \[0.0, 1.0\]"),
        ({"keep_prob": torch.tensor([-0.1, 1.0])}, ValueError, r"keep_prob\[0\]: got -0.1"),
        ({"keep_prob": torch.full((2, 3), float("nan"))}, ValueError, r"keep_prob\[0, 0\]: got nan"),
        ({"vocab_size": 0}, ValueError, "vocab_size: got 0; allowed: 1 <= vocab_size"),
        ({"vocab_size": 2**31}, ValueError, "vocab_size: got 2147483648"),
        ({"vocab_size": 7.0}, TypeError, "vocab_size: got float"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"seed": 2**64}, ValueError, "seed: got"),
        ({"seed": 1.5}, TypeError, "seed: got float"),
        ({"seed": True}, TypeError, "seed: got bool"),
        ({"step": -1}, ValueError, "step: got -1"),
        ({"step": 2**32}, ValueError, "step: got"),
        ({"step": torch.tensor(2**32)}, ValueError, "step: got 4294967296"),
        ({"step": torch.tensor([1])}, TypeError, "step: got a torch.int64 tensor of shape"),
        ({"sample_ids": torch.arange(3)}, ValueError, r"sample_ids: got shape \(3,\); allowed: \(2,\)"),
        ({"sample_ids": torch.rand(2)}, TypeError, "sample_ids: got dtype torch.float32"),
        ({"sample_ids": torch.tensor([0, 2**40])}, ValueError, r"sample_ids\[1\]: got 1099511627776"),
        ({"sample_ids": torch.tensor([-1, 0])}, ValueError, r"sample_ids\[0\]: got -1"),
        ({"frozen": TOKENS}, TypeError, "frozen: got dtype torch.int64; allowed: torch.bool"),
        ({"frozen": TOKENS[0] > 0}, ValueError, r"frozen: got shape \(3,\)"),
        ({"noise": torch.ones(7) / 7}, TypeError, "noise: got Tensor; allowed: None"),
        ({"noise": some_noise(8)}, ValueError, "noise: got a law over 8 tokens; allowed: vocab_size = 7"),
        ({"tokens": torch.tensor([[0, 1, 2], [3, 7, -1]])}, IndexError, r"tokens\[1, 1\]: got 7; allowed: \[0, 7\)"),
        ({"tokens": torch.tensor([[0, 1, 2], [3, 4, -1]]).int()}, IndexError, r"tokens\[1, 2\]: got -1"),
        ({"tokens": torch.tensor([[0, 1, 2], [3, -(2**63), 9]])}, IndexError, r"tokens\[1, 1\]: got -9223372036854"),
    ],
)  # fmt: skip
def test_bad_arguments(backend, change, error, message):
    arguments = {
        "tokens": TOKENS,
        "keep_prob": KEEP,
        "vocab_size": 7,
        "seed": 1,
        "backend": backend,
    }
    with pytest.raises(error, match=message):
        corrupt(**{**arguments, **change})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_refused(backend):
    nested = torch.nested.nested_tensor([TOKENS[0], TOKENS[1]])
    with pytest.raises(TypeError, match="tokens: got a nested tensor"):
        corrupt(nested, KEEP, 7, seed=1, backend=backend)


@pytest.mark.slow
@pytest.mark.skipif(not backends()["cpu"], reason="the reference would need too much memory")
@pytest.mark.skipif(psutil.virtual_memory().available < 21 * 2**30, reason="needs 21 GiB")
def test_more_than_2_31_elements():
    length = 2**31 + 9
    noisy, is_signal = corrupt(
        torch.zeros(1, length, dtype=torch.int32), torch.zeros(1), 2**31 - 1, seed=1, backend="cpu"
    )
    assert not is_signal[0, 2**31 :].any()
    # The last token stands first in a Philox block of its own: a wrapped index would give another.
    _, draw, _, _ = philox.words_at(0, 1, 0, torch.tensor(0), torch.tensor(length // 2))
    assert int(noisy[0, -1]) == int(draw) * (2**31 - 1) >> 32
