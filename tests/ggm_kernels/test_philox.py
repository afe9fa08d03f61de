"""Philox4x32-10 against the known answers that Random123 publishes, and the layout of the counter."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from ggm_kernels import native
from ggm_kernels.native import compiled
from ggm_kernels.randomness import MAX_RACE_VOCAB, MAX_SAMPLE_ID, MAX_STEP, RACE_GROUP, Stream
from ggm_kernels.reference import philox

# kat_vectors of Random123, "philox4x32 10": counter words, key words, random words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
needs_core = pytest.mark.skipif(native.core is None, reason="no compiled core")


def seed_of(key: tuple[int, int]) -> int:
    return key[0] | key[1] << 32


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers_of_the_reference(counter, key, words):
    given_words = philox.philox4x32(tuple(map(torch.tensor, counter)), seed_of(key))
    assert tuple(map(int, given_words)) == words


def as_int32(words) -> torch.Tensor:
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


@needs_core
@pytest.mark.parametrize("isa", native.core.isas() if native.core else [])
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers_of_every_lane_of_every_instruction_set(isa, counter, key, words):
    counters = as_int32([counter] * 32).contiguous()  # 32 rows: each lane of the widest vectors at least once
    out = torch.zeros_like(counters)
    before = native.core.isa()
    assert native.core.select_isa(isa)
    try:
        arrays = {"counters": counters.data_ptr(), "words": out.data_ptr(), "count": len(counters)}
        native.core.cpu_philox(**arrays, seed=seed_of(key))
    finally:
        native.core.select_isa(before)
    assert torch.equal(out, as_int32([words] * 32))


@triton.jit
def triton_philox(counter_ptr, out_ptr, seed):
    c0 = tl.load(counter_ptr).to(tl.uint32)
    c1 = tl.load(counter_ptr + 1).to(tl.uint32)
    c2 = tl.load(counter_ptr + 2).to(tl.uint32)
    c3 = tl.load(counter_ptr + 3).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, c3)
    tl.store(out_ptr, w0.to(tl.int64))
    tl.store(out_ptr + 1, w1.to(tl.int64))
    tl.store(out_ptr + 2, w2.to(tl.int64))
    tl.store(out_ptr + 3, w3.to(tl.int64))


def check_triton(counter, key, words, device):
    seed = seed_of(key)
    out = torch.zeros(4, dtype=torch.int64, device=device)
    triton_philox[(1,)](torch.tensor(counter, device=device), out, seed - 2**64 if seed >= 2**63 else seed)
    assert tuple(out.tolist()) == words


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is compiled here: see the GPU test")
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers_of_triton(counter, key, words):
    check_triton(counter, key, words, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers_on_the_gpu(counter, key, words):
    check_triton(counter, key, words, "cuda")
    counters = as_int32([counter] * 100).cuda()
    out = torch.zeros_like(counters)
    arrays = {"counters": counters.data_ptr(), "words": out.data_ptr(), "count": 100}
    queue = {"stream": torch.cuda.current_stream().cuda_stream, "device": 0}
    native.core.cuda_philox(**arrays, seed=seed_of(key), **queue)
    assert torch.equal(out.cpu(), as_int32([words] * 100))


@needs_core
@given(
    stream=st.sampled_from(list(Stream)),
    step=st.integers(0, MAX_STEP - 1),
    sample_id=st.integers(0, MAX_SAMPLE_ID - 1),
    position_block=st.integers(0, 2**32 - 1),
    vocab_block=st.integers(0, MAX_RACE_VOCAB // 4 - 1),
)
def test_core_and_reference_share_one_counter_layout(stream, step, sample_id, position_block, vocab_block):
    counter = native.core.counter(int(stream), step, sample_id, position_block, vocab_block)
    expected = philox.philox4x32(tuple(map(torch.tensor, counter)), 7)
    given_words = philox.words_at(
        stream, 7, step, torch.tensor(sample_id), torch.tensor(position_block), vocab_block
    )
    assert list(map(int, given_words)) == list(map(int, expected))


@needs_core
def test_no_two_coordinates_share_a_counter():
    # Every coordinate at 0, at 1 and at its largest value: all combinations, all counters distinct.
    largest = {
        "stream": 15,
        "step": MAX_STEP - 1,
        "sample": MAX_SAMPLE_ID - 1,
        "position": 2**32 - 1,
    }
    values = [(0, 1, top) for top in (*largest.values(), MAX_RACE_VOCAB // 4 - 1)]
    grid = torch.cartesian_prod(*map(torch.tensor, values)).tolist()
    counters = {tuple(native.core.counter(*map(int, row))) for row in grid}
    assert len(counters) == len(grid) == 3**5


def test_uniforms_never_reach_the_ends():
    words = torch.tensor([0, 1, 2**31, 2**32 - 2, 2**32 - 1])
    u = philox.uniform(words)
    assert u.dtype == torch.float32
    assert float(u.min()) == 2.0**-33
    assert float(u.max()) == 1.0 - 2.0**-24
    assert torch.isfinite(torch.log(-torch.log1p(-u))).all()


def test_groups_of_the_race_are_those_of_the_core():
    core = compiled.core
    if core is None:
        pytest.skip("no compiled core")
    assert core.RACE_GROUP == RACE_GROUP
