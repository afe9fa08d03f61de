"""What tensors' memory may look like: empty in any layout, of their own where written, made under inference_mode."""

import random
from itertools import product

import numpy as np
import pytest
import torch

from ggm_kernels import (
    NoiseLaw,
    Stream,
    checks,
    commit,
    corrupt,
    glauber_step,
    linear_glauber_step,
    linear_sigmoid_bce,
    random_tokens,
    sigmoid_bce,
)

OP = "glauber_step"


# Empty batches


def _from_numpy(shape, dtype):
    """Strides of 0, as numpy gives them to what it broadcasts."""
    zero = torch.zeros((), dtype=dtype)
    if dtype == torch.bfloat16:
        return zero.expand(shape)
    return torch.from_numpy(np.lib.stride_tricks.as_strided(zero.numpy(), shape, (0,) * len(shape)))


LAYOUTS = {
    "plain": lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    "expanded": lambda shape, dtype: torch.zeros((1,) * len(shape), dtype=dtype).expand(shape),
    "numpy": _from_numpy,
    "transposed": lambda shape, dtype: torch.zeros(shape[::-1], dtype=dtype).permute(
        *range(len(shape))[::-1]
    ),
    "strided": lambda shape, dtype: torch.zeros([2 * size for size in shape], dtype=dtype)[
        tuple(slice(0, 2 * size, 2) for size in shape)
    ],
    "odd": lambda shape, dtype: (
        torch.zeros(shape, dtype=dtype).as_strided(shape, (7,) * len(shape))
        if 0 in shape
        else torch.zeros(shape, dtype=dtype)
    ),
}


class Maker:
    """Zeros in layouts drawn at random; what is written and not empty has memory of its own."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def __call__(self, *shape, dtype=torch.float32):
        return LAYOUTS[self.random.choice(list(LAYOUTS))](shape, dtype)

    def ids(self, *shape):
        return self(*shape, dtype=self.random.choice([torch.int32, torch.int64]))

    def maybe(self, value):
        return value if self.random.random() < 0.5 else None

    def written(self, *shape, dtype=torch.float32):
        value = self(*shape, dtype=dtype)
        return value if value.numel() == 0 else torch.zeros(shape, dtype=dtype)

    def positions(self, batch, count):
        positions = torch.arange(count)
        if batch == 0 or count == 0:
            positions = self.random.choice(
                [positions, positions.expand(batch, count), self.ids(batch, count)]
            )
        return positions


@pytest.mark.parametrize("seed", range(8))
def test_empty_steps_of_any_layout(backend, seed):
    make = Maker(seed)
    for batch, length, count in [(0, 5, 3), (2, 5, 0), (0, 5, 0), (2, 0, 0), (0, 0, 0)]:
        tokens = make.written(batch, length, dtype=make.random.choice([torch.int32, torch.int64]))
        rate = make.maybe(make.random.choice([make(batch, count), make(batch)]))
        update = {
            "positions": make.positions(batch, count),
            "seed": 1,
            "step": make.random.choice([0, torch.tensor(3)]),
            "temperature": make.random.choice([0.0, 1.0]),
            "top_k": make.maybe(2),
            "top_p": make.maybe(0.5),
            "noise_rate": rate,
            "noise": make.maybe(NoiseLaw(torch.full((7,), 1 / 7))),
            "sample_ids": make.maybe(make.ids(batch)),
            "frozen": make.maybe(make(batch, length, dtype=torch.bool)),
            "log_sum_exp": make.maybe(make.written(batch, count)),
            "log_prob": make.maybe(make.written(batch, count)),
            "keep_prob": None if rate is None else make.maybe(make.written(batch, count)),
            "backend": backend,
        }
        assert glauber_step(tokens, make(batch, count, 7), **update) is tokens
        hidden, weight = make(batch, count, 4), torch.zeros(7, 4)
        assert linear_glauber_step(tokens, hidden, weight, **update) is tokens
        linear_glauber_step(tokens, hidden[..., :0], weight[:, :0], bias=make.maybe(torch.zeros(7)), **update)
        assert not tokens.any()


@pytest.mark.parametrize("from_numpy", [False, True])
def test_an_empty_batch_whose_positions_have_stride_0(backend, from_numpy):
    """The kernel took a stride of 0 for one list of positions that all sequences share, and read it."""
    positions = torch.arange(3)[None].expand(0, 3)
    if from_numpy:
        positions = torch.from_numpy(np.lib.stride_tricks.as_strided(np.arange(0), (0, 3), (0, 0)))
    tokens = torch.zeros(0, 5, dtype=torch.int64)
    assert glauber_step(tokens, torch.zeros(0, 3, 7), positions, seed=0, step=0, backend=backend) is tokens
    rate = torch.zeros(0).as_strided((2, 0), (0, 0))
    tokens, logits = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 0, 7)
    glauber_step(tokens, logits, torch.arange(0), seed=0, step=0, noise_rate=rate, backend=backend)


@pytest.mark.parametrize("seed", range(8))
def test_empty_corruption_of_any_layout(backend, seed):
    make = Maker(seed)
    for batch, length in [(0, 5), (2, 0), (0, 0)]:
        tokens = make.ids(batch, length)
        noisy, is_signal = corrupt(
            tokens,
            make.random.choice([make(batch), make(batch, length)]),
            7,
            seed=1,
            sample_ids=make.maybe(make.ids(batch)),
            frozen=make.maybe(make(batch, length, dtype=torch.bool)),
            noise=make.maybe(NoiseLaw(torch.full((7,), 1 / 7))),
            backend=backend,
        )
        assert noisy.shape == is_signal.shape == (batch, length) and noisy.dtype == tokens.dtype
        drawn = random_tokens(make.ids(batch), length, 7, stream=Stream.INITIAL, seed=1, backend=backend)
        assert drawn.shape == (batch, length)


@pytest.mark.parametrize("seed", range(8))
def test_empty_commits_of_any_layout(backend, seed):
    make = Maker(seed)
    for batch, length in [(0, 5), (2, 0), (0, 0)]:
        tokens = make.written(batch, length, dtype=make.random.choice([torch.int32, torch.int64]))
        commit(
            tokens,
            make.ids(batch, length),
            make(batch, length),
            count=make.random.choice([None, 2, make.ids(batch)]),
            threshold=make.maybe(make.random.choice([0.5, make(batch)])),
            budget=make.maybe(make.random.choice([0.5, make(batch)])),
            eligible=make.maybe(make(batch, length, dtype=torch.bool)),
            rest=make.random.choice(["keep", "noise"]),
            vocab_size=7,
            seed=1,
            step=0,
            sample_ids=make.maybe(make.ids(batch)),
            accepted=make.maybe(make.written(batch, length, dtype=torch.bool)),
            backend=backend,
        )


@pytest.mark.parametrize("seed", range(8))
def test_empty_losses_of_any_layout(backend, seed):
    make = Maker(seed)
    sizes = [(0, 3, 5), (2, 0, 5), (0, 0, 5), (2, 3, 0), (0, 3, 0)]
    for (rows, count, hidden_size), shared in product(sizes, [None, 0, 4]):
        dtype = make.random.choice([torch.float32, torch.bfloat16])
        candidates = make.ids(rows, count)
        weights = [make(rows, count), make.random.choice([make(rows, 1), make(1, count), 0.5, None])]
        offset = make.maybe(make(rows))
        leaves = [
            make(rows, 7, dtype=dtype),
            make(rows, hidden_size, dtype=dtype),
            make(7, hidden_size, dtype=dtype),
        ]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        sparse = make.random.random() < 0.5
        common = {"offset": offset, "backend": backend}
        if shared is not None:
            common |= {"shared_candidates": make.ids(shared), "shared_weight": make(rows, 1)}
        losses = [
            sigmoid_bce(leaves[0], candidates, *weights, **common),
            linear_sigmoid_bce(*leaves[1:], candidates, *weights, sparse_grad=sparse, **common),
        ]
        for loss in losses:
            assert loss.shape == (rows,)
            loss.sum().backward()
        for leaf in leaves:
            assert leaf.grad.shape == leaf.shape
            assert (
                (count + (shared or 0)) * hidden_size > 0
                or not leaf.grad.to_dense().any()
                or leaf is leaves[0]
            )


@pytest.mark.parametrize("backend_name", ["reference", "cpu", "triton"])
def test_no_rows_from_no_vocabulary_or_positions_out_of_range(backend_name):
    with pytest.raises(ValueError, match="V = 0"):
        glauber_step(torch.zeros(0, 5).long(), torch.zeros(0, 3, 0), torch.arange(3), seed=0, step=0)
    for positions in [torch.tensor([0, 9]), torch.tensor([1, 1])]:
        with pytest.raises(IndexError, match="positions"):
            tokens = torch.zeros(0, 5).long()
            glauber_step(tokens, torch.zeros(0, 2, 7), positions, seed=0, step=0, backend=backend_name)


def test_noise_rates_are_checked_where_they_are(backend):
    """And not at the stride of 1 that they do not have."""
    rates = torch.tensor([[0.5, 9.0, 0.5, 9.0], [0.5, 9.0, 0.5, 9.0]])
    arguments = (torch.zeros(2, 4).long(), torch.zeros(2, 2, 7), torch.arange(2))
    glauber_step(*arguments, seed=0, step=0, noise_rate=rates[:, ::2], backend=backend)
    with pytest.raises(ValueError, match=r"noise_rate\[0, 0\]: got 9.0"):
        glauber_step(*arguments, seed=0, step=0, noise_rate=rates[:, 1::2], backend=backend)


# Memory of their own


def test_overlap_within_a_tensor_is_seen_whatever_its_strides():
    memory = torch.zeros(64)
    for rows in range(5):
        for columns in range(5):
            for strides in np.ndindex(7, 7):
                value = memory.as_strided((rows, columns), strides)
                addresses = {at @ np.array(strides) for at in map(np.array, np.ndindex(rows, columns))}
                if len(addresses) == rows * columns:
                    checks.writable("tokens", value)
                else:
                    with pytest.raises(ValueError, match="tokens: got strides"):
                        checks.writable("tokens", value)


@pytest.mark.parametrize("strides", [(0, 1), (1, 0), (1, 1), (2, 1), (3, 3), (2, 3)], ids=str)
def test_overlapping_tokens_are_refused(backend, strides):
    memory = torch.full((40,), 3)
    tokens = memory.as_strided((4, 5), strides)
    arguments = {"seed": 0, "step": 0, "backend": backend}
    with pytest.raises(
        ValueError, match=r"tokens: got strides .*; allowed: elements with memory of their own"
    ):
        glauber_step(tokens, torch.zeros(4, 2, 7), torch.arange(2), **arguments)
    with pytest.raises(ValueError, match=r"tokens: got strides"):
        linear_glauber_step(tokens, torch.zeros(4, 2, 3), torch.zeros(7, 3), torch.arange(2), **arguments)
    assert memory.eq(3).all()


def shared_memory():
    """Arguments of a step of which two share memory: the first is refused because of the second."""
    own, ids = torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.int64)
    order = torch.arange(5).repeat(4, 1)
    yield "log_prob", "log_sum_exp", {"log_sum_exp": own, "log_prob": own}
    row = torch.zeros(8, 5)
    yield "keep_prob", "log_prob", {"log_prob": row[:4], "keep_prob": row[3:7], "noise_rate": torch.rand(4)}
    memory = np.zeros(60, dtype=np.float32)  # two tensors that know nothing of each other
    parts = [torch.from_numpy(memory[at : at + 20]).view(4, 5) for at in (0, 19)]
    yield "log_prob", "log_sum_exp", {"log_sum_exp": parts[0], "log_prob": parts[1]}
    yield "log_prob", "tokens", {"tokens": ids, "log_prob": ids.view(-1).view(torch.float32)[7:27].view(4, 5)}
    yield "noise_rate", "keep_prob", {"noise_rate": own, "keep_prob": own}
    yield "positions", "tokens", {"tokens": order, "positions": order}
    yield "sample_ids", "tokens", {"tokens": ids, "sample_ids": ids.view(-1)[3:7]}
    yield "step", "tokens", {"tokens": ids, "step": ids[2, 2]}
    # What an op reads as a copy.
    yield "sample_ids", "tokens", {"tokens": ids, "sample_ids": ids[:, 2]}
    short = torch.zeros(4, 5, dtype=torch.int32)
    yield "sample_ids", "tokens", {"tokens": short, "sample_ids": short[:, 0]}
    yield "top_k", "tokens", {"tokens": short, "top_k": short[:, 1]}
    yield "temperature", "argmax", {"argmax": ids, "temperature": ids.view(torch.float64)[:, 1]}
    yield "sample_ids", "argmax", {"argmax": ids, "sample_ids": ids.view(-1)[::5]}
    yield "frozen", "log_prob", {"log_prob": own, "frozen": own.view(torch.uint8)[:, ::4].view(torch.bool)}
    logits = torch.zeros(4, 5, 7)
    yield "logits", "log_sum_exp", {"logits": logits, "log_sum_exp": logits.view(-1)[7:27].view(4, 5)}


@pytest.mark.parametrize(
    ("name", "other", "change"), list(shared_memory()), ids=lambda value: str(value)[:12]
)
def test_shared_memory_is_refused(backend, name, other, change):
    arguments = {
        "tokens": torch.zeros(4, 5, dtype=torch.int64),
        "logits": torch.zeros(4, 5, 7),
        "positions": torch.arange(5),
        "seed": 0,
        "step": 0,
    } | change
    before = {key: value.clone() for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    with pytest.raises(
        ValueError, match=f"^{name}: got memory that is written as {other}; allowed: memory of its"
    ):
        glauber_step(**arguments, backend=backend)
    assert all(torch.equal(arguments[key], value) for key, value in before.items())
    logits = arguments.pop("logits")
    if name != "logits":
        hidden, weight = logits[..., :3], torch.zeros(7, 3)
        with pytest.raises(ValueError, match=f"^{name}: got memory that is written as {other}"):
            linear_glauber_step(**arguments, hidden=hidden, weight=weight, backend=backend)


def test_memory_shared_with_what_a_commit_writes_is_refused(backend):
    tokens, mask, score = torch.arange(8).view(2, 4), torch.ones(2, 4, dtype=torch.bool), torch.rand(2, 4)
    for name, other, change in [
        ("proposal", "tokens", {"proposal": tokens}),
        ("eligible", "accepted", {"eligible": mask, "accepted": mask}),
        ("count", "tokens", {"count": tokens.view(-1)[2:4]}),
        ("sample_ids", "tokens", {"sample_ids": tokens.view(-1)[2:4]}),
        ("sample_ids", "tokens", {"sample_ids": tokens[:, 1]}),
        ("budget", "tokens", {"budget": tokens.view(torch.float64)[:, 0]}),
    ]:
        arguments = {
            "tokens": tokens,
            "proposal": torch.zeros(2, 4).long(),
            "score": score,
            "count": 1,
        } | change
        with pytest.raises(ValueError, match=f"^{name}: got memory that is written as {other}"):
            commit(**arguments, seed=1, step=0, backend=backend)
    assert torch.equal(tokens.flatten(), torch.arange(8)) and mask.all()


def test_one_by_product_given_twice_is_refused_when_compiled(backend):
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager")
    def step(tokens, logits, twice):
        return glauber_step(
            tokens,
            logits,
            torch.arange(5),
            seed=0,
            step=0,
            log_sum_exp=twice,
            log_prob=twice,
            backend=backend,
        )

    with pytest.raises(Exception, match="log_prob: got memory that is written as log_sum_exp"):
        step(torch.zeros(4, 5, dtype=torch.int64), torch.zeros(4, 5, 7), torch.zeros(4, 5))


def test_neighbours_that_share_no_byte_are_accepted(backend):
    """Columns by turns of one buffer, and parts of a workspace that touch."""
    pairs, workspace = torch.zeros(4, 5, 2, dtype=torch.int64), torch.zeros(60)
    pairs[..., 1] = torch.arange(5)
    by_products = [workspace[at : at + 20].view(4, 5) for at in (0, 20, 40)]
    names = ("log_sum_exp", "log_prob", "keep_prob")
    arguments = dict(zip(names, by_products, strict=True))
    logits = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0))
    out = glauber_step(
        pairs[..., 0],
        logits,
        pairs[..., 1],
        seed=0,
        step=0,
        noise_rate=torch.full((4,), 0.9),
        **arguments,
        backend=backend,
    )
    assert out.any() and pairs[..., 1].eq(torch.arange(5)).all()
    torch.testing.assert_close(by_products[0], logits.logsumexp(2))
    assert by_products[2].gt(0).all()


# Tensors made under inference_mode


def test_inference_tensors_are_taken_by_every_op(backend):
    with torch.inference_mode():
        tokens, ids = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
        logits, hidden, weight = torch.randn(2, 2, 7), torch.randn(2, 2, 3), torch.randn(7, 3)
        by_products = {name: torch.zeros(2, 2) for name in ("log_sum_exp", "log_prob", "keep_prob")}
        rate = torch.full((2,), 0.9)
    arguments = {"positions": torch.arange(2), "seed": 0, "step": 0, "noise_rate": rate, **by_products}
    assert tokens.is_inference() and not torch.is_inference_mode_enabled()
    own = {name: torch.zeros(2, 2) for name in by_products}
    expected = glauber_step(tokens.clone(), logits, **{**arguments, **own}, backend="reference")
    assert torch.equal(glauber_step(tokens, logits, **arguments, backend=backend), expected)
    for name, value in by_products.items():
        torch.testing.assert_close(value, own[name], equal_nan=True)
    linear_glauber_step(tokens, hidden, weight, **arguments, backend=backend)
    assert not corrupt(tokens, torch.ones(2), 7, seed=0, backend=backend)[0].is_inference()
    accepted = torch.zeros(2, 4, dtype=torch.bool)
    commit(
        tokens,
        torch.full((2, 4), 5),
        torch.ones(2, 4),
        count=4,
        seed=0,
        step=0,
        accepted=accepted,
        backend=backend,
    )
    assert tokens.eq(5).all() and accepted.all()
    for loss in [
        sigmoid_bce(logits[0], ids[:, 0], 0.5, backend=backend),
        linear_sigmoid_bce(hidden[0], weight, ids, 0.5, backend=backend),
    ]:
        assert loss.shape == (2,) and not loss.requires_grad
    with torch.inference_mode():
        glauber_step(torch.zeros(2, 4, dtype=torch.int64), logits, **arguments, backend=backend)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        linear_sigmoid_bce(hidden[0], torch.randn(7, 3, requires_grad=True), ids, 0.5, backend=backend)


def test_inference_tensors_under_check(backend, monkeypatch):
    monkeypatch.setenv("GGM_KERNELS_CHECK", "1")
    with torch.inference_mode():
        tokens, logits, log_prob = torch.zeros(2, 4).long(), torch.randn(2, 2, 7), torch.zeros(2, 2)
    glauber_step(tokens, logits, torch.arange(2), seed=0, step=0, log_prob=log_prob, backend=backend)
    assert log_prob.lt(0).all()
