"""`linear_sigmoid_bce` under DDP and FSDP2: two processes end up with the gradients of one."""

import re
from collections.abc import Callable

import pytest
import torch
from sharded_heads import PROCESSES, ROWS, VOCAB_SIZE, WIDTH, Case, do, needs_gloo

from ggm_kernels import linear_sigmoid_bce, sigmoid_bce

pytestmark = needs_gloo

COUNT = 3


def mean_loss(hidden, weight, candidates, signal, *, bias) -> torch.Tensor:
    return linear_sigmoid_bce(hidden, weight, candidates, signal, bias=bias).mean()


def batch() -> tuple[torch.Tensor, ...]:
    """The rows of all processes: tokens, candidates and signal weights."""
    generator = torch.Generator().manual_seed(1)
    rows = PROCESSES * ROWS
    return (
        torch.randint(VOCAB_SIZE, (rows,), generator=generator),
        torch.randint(VOCAB_SIZE, (rows, COUNT), generator=generator),
        torch.rand(rows, COUNT, generator=generator),
    )


CASE = Case(mean_loss, batch)


def dtensors_outside_forward(rank: int) -> None:
    model, _ = CASE.sharded("bias")
    _, candidates, signal = CASE.share_of(rank)
    hidden = torch.zeros(ROWS, WIDTH)
    weight, bias = model.token.weight, model.bias
    message = "weight: got a DTensor; allowed: a plain tensor: call inside the forward of the module"
    with pytest.raises(TypeError, match=message):
        linear_sigmoid_bce(hidden, weight, candidates, signal)
    with pytest.raises(TypeError, match=re.escape("or give bias.full_tensor()")):
        linear_sigmoid_bce(hidden, weight.full_tensor(), candidates, signal, bias=bias)
    with pytest.raises(TypeError, match="logits: got a DTensor"):
        sigmoid_bce(weight, candidates[:, 0], 0.5)
    loss = linear_sigmoid_bce(hidden, weight.full_tensor(), candidates, signal, bias=bias.full_tensor())
    loss.sum().backward()
    assert bias.grad.full_tensor().abs().sum() > 0


@pytest.fixture(scope="module")
def assert_done(tmp_path_factory) -> Callable[[Callable], None]:
    jobs = [CASE.ddp, CASE.fsdp, dtensors_outside_forward, CASE.compiled_fsdp]
    return do(tmp_path_factory.mktemp("processes"), jobs)


def test_ddp_gradients_are_those_of_one_process_on_the_whole_batch(assert_done):
    assert_done(CASE.ddp)


def test_fsdp2_gradients_inside_forward_are_those_of_one_process(assert_done):
    assert_done(CASE.fsdp)


def test_a_compiled_fsdp2_model_has_the_same_gradients(assert_done):
    assert_done(CASE.compiled_fsdp)


def test_a_dtensor_outside_forward_is_refused_by_name_and_its_full_tensor_taken(assert_done):
    assert_done(dtensors_outside_forward)
