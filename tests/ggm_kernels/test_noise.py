"""NoiseLaw: the alias table carries the law."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ggm_kernels import NoiseLaw, native
from ggm_kernels.native.alias_table import alias_table
from ggm_kernels.reference import alias_table as reference

CPU = torch.device("cpu")


def law_of_table(noise: NoiseLaw) -> torch.Tensor:
    """The law that a uniform column and a uniform acceptance word give, in float64."""
    size = noise.vocab_size
    threshold, alias = noise.table(torch.device("cpu")).long().unbind(-1)
    accepted = (threshold & 0xFFFFFFFF).double() / 2**32
    return (accepted / size).index_add(0, alias, (1 - accepted) / size)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=300).filter(lambda row: sum(row) > 1e-3))
def test_the_table_is_the_law(weights):
    probs = torch.tensor(weights, dtype=torch.float64)
    noise = NoiseLaw(probs / probs.sum())
    assert (law_of_table(noise) - noise.probs).abs().max() < 2**-31
    assert noise.probs.sum().item() == pytest.approx(1, abs=1e-12)


def test_a_token_of_probability_zero_has_no_mass_at_all():
    probs = torch.rand(1000, generator=torch.Generator().manual_seed(0)).double()
    probs[::3] = 0
    law = law_of_table(NoiseLaw(probs / probs.sum()))
    assert (law[::3] == 0).all()
    assert (law[1::3] > 0).all()


@pytest.mark.skipif(native.core is None, reason="no compiled core")
@pytest.mark.parametrize("isa", native.core.isas() if native.core else [])
@pytest.mark.parametrize("size", [1, 2, 3, 100, 4097])
@pytest.mark.parametrize("power", [0, 1, 30])
def test_the_core_builds_the_table_of_the_reference(isa, size, power):
    weights = torch.rand(size, generator=torch.Generator().manual_seed(size)).double().pow(power)
    weights[::5] *= size > 3
    scaled = weights / weights.sum() * size
    before = native.core.isa()
    native.core.select_isa(isa)
    try:
        assert torch.equal(alias_table(scaled), reference.alias_table(scaled))
    finally:
        native.core.select_isa(before)


@pytest.mark.skipif(native.core is None, reason="no compiled core")
def test_a_law_of_a_large_vocabulary_is_quickly_made():
    probs = torch.rand(262144).softmax(0)
    python = min(timed(lambda: reference.alias_table(probs.double() * 262144)) for _ in range(2))
    ours = min(timed(lambda: NoiseLaw(probs)) for _ in range(7))
    assert ours < python / 3  # 40 on a machine of its own


def timed(call) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def test_absorbing():
    law = NoiseLaw.absorbing(5, 3)
    assert (law.vocab_size, law.mask_id, law.token_bound, repr(law)) == (5, 3, 5, "NoiseLaw(V=5, mask_id=3)")
    dense = NoiseLaw(torch.eye(5)[3])
    assert dense.mask_id == 3 and NoiseLaw(torch.full((2,), 0.5)).mask_id is None
    for ours, theirs in [(law.probs, dense.probs), (law.log_probs(CPU), dense.log_probs(CPU))]:
        assert torch.equal(ours, theirs)
    assert torch.equal(law.table(CPU), dense.table(CPU))


def test_absorbing_beside_the_tokens():
    law = NoiseLaw.absorbing(5, 5)
    assert (law.vocab_size, law.mask_id, law.token_bound) == (5, 5, 6)
    assert law.probs.tolist() == [0, 0, 0, 0, 0, 1]
    assert NoiseLaw.absorbing(2**31 - 1, 2**31 - 1).mask_id == 2**31 - 1  # nothing of that size is made


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5, 6), ValueError, "mask_id: got 6; allowed: 0 <= mask_id < 6"),
        ((5, -1), ValueError, "mask_id: got -1"),
        ((5, 2.0), TypeError, "mask_id: got float"),
        ((0, 0), ValueError, "vocab_size: got 0; allowed: 1 <= vocab_size"),
        ((2**31, 0), ValueError, "vocab_size: got 2147483648"),
    ],
)
def test_bad_masks(arguments, error, message):
    with pytest.raises(error, match=message):
        NoiseLaw.absorbing(*arguments)


def test_log_probs():
    noise = NoiseLaw(torch.tensor([0.25, 0.75, 0.0]))
    expected = torch.tensor([0.25, 0.75, 0.0]).log()
    torch.testing.assert_close(noise.log_probs(torch.device("cpu")), expected)
    assert noise.vocab_size == 3
    assert repr(noise) == "NoiseLaw(V=3)"


@pytest.mark.parametrize(
    ("probs", "error", "message"),
    [
        ([0.5, 0.5], TypeError, "probs: got list"),
        (torch.tensor([1, 0]), TypeError, "probs: got dtype torch.int64"),
        (torch.full((2, 2), 0.25), ValueError, r"probs: got shape \(2, 2\); allowed: a 1-d tensor"),
        (torch.empty(0), ValueError, "probs: got 0 entries"),
        (torch.tensor([1.5, -0.5]), ValueError, r"probs\[0\]: got 1.5; allowed: \[0.0, 1.0\]"),
        (torch.tensor([0.5, float("nan")]), ValueError, r"probs\[1\]: got nan"),
        (torch.tensor([0.5, 0.4]), ValueError, "probs: got a sum of 0.9"),
    ],
)
def test_bad_laws(probs, error, message):
    with pytest.raises(error, match=message):
        NoiseLaw(probs)


def test_the_law_does_not_depend_on_the_default_device():
    probs = torch.tensor([0.1, 0.2, 0.7])
    expected = NoiseLaw(probs)
    with torch.device("meta"):
        law = NoiseLaw(probs)
    cpu = torch.device("cpu")
    assert law.table(cpu).device == law.log_probs(cpu).device == cpu
    assert torch.equal(law.table(cpu), expected.table(cpu))


@pytest.mark.parametrize("law", [NoiseLaw.absorbing, lambda size, _: NoiseLaw(torch.full((size,), 1 / size))])
def test_what_was_made_in_inference_mode_serves_gradients(law):
    with torch.inference_mode():
        noise = law(5, 4)
        kept = noise.probs_on(CPU), noise.log_probs(CPU)
    assert noise.probs_on(CPU) is kept[0] and noise.log_probs(CPU) is kept[1]  # copied once
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    for values in kept:
        (values.double().nan_to_num(neginf=0.0) @ weight).sum().backward()
        (values * weight.sum(1)).sum().backward()
    assert weight.grad is not None
