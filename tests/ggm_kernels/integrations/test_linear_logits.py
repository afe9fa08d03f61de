"""Logits kept as factors: what is done to them happens to the tensor that they stand for."""

import pytest
import torch

from ggm_kernels.integrations.linear_logits import LinearLogits


@pytest.fixture
def kept():
    head = torch.nn.Linear(5, 9)
    return LinearLogits.of(torch.randn(2, 4, 5), head, softcap=2.0) / 0.5


def test_they_stand_for_a_tensor(kept):
    logits = 2 * torch.tanh((kept.hidden @ kept.weight.T + kept.bias) / 2) / 0.5
    torch.testing.assert_close(kept.multiplied_out(), logits)
    torch.testing.assert_close(kept.argmax(dim=-1), logits.argmax(-1))
    torch.testing.assert_close(torch.where(torch.tensor(True), kept, 0.0), logits)
    torch.testing.assert_close(kept.softmax(-1), logits.softmax(-1))
    assert kept.shape == logits.shape and kept.dtype == logits.dtype and kept.device == logits.device


def test_parts_and_single_logits(kept):
    logits = kept.multiplied_out()
    for index in (slice(0, 1), (slice(None), slice(-2, None), slice(None)), torch.tensor([1, 0])):
        part = kept[index]
        assert isinstance(part, LinearLogits)
        torch.testing.assert_close(part.multiplied_out(), logits[index])
    tokens = torch.randint(9, (2, 4))
    torch.testing.assert_close(kept.at(tokens), logits.gather(-1, tokens[..., None])[..., 0] * 0.5)
    assert kept.clone() is kept
    for index in ((slice(None), slice(None), slice(0, 3)), 0, None):
        with pytest.raises(IndexError, match=r"allowed: \[sequences, positions\]"):
            kept[index]
