"""The losses with options in random combinations, against the float64 truth of tests/truth.py, gradients included.

tests/loss_cases.py draws and judges them; tests/random_cases.py tells how many there are.
"""

import pytest
from loss_cases import check_loss
from random_cases import check_many, few, many

from ggm_kernels import linear_sigmoid_bce, sigmoid_bce

OP = "sigmoid_bce"
LOSSES = [sigmoid_bce, linear_sigmoid_bce]


@pytest.mark.parametrize("call", LOSSES)
def test_losses_agree_with_the_truth(backend, call):
    check_many(check_loss, call, backend, few(backend))


@pytest.mark.slow
@pytest.mark.parametrize("call", LOSSES)
def test_many_losses_agree_with_the_truth(backend, call):
    check_many(check_loss, call, backend, many(backend))


@pytest.mark.parametrize("fault", ["offset", "noise_weight", "signal_weight", "shared_weight"])
def test_a_planted_fault_of_a_loss_is_seen(fault):
    def wrong(**given):
        return linear_sigmoid_bce(
            **{**given, fault: given["signal_weight"] * 1.001 if fault == "signal_weight" else None}
        )

    with pytest.raises(AssertionError, match=r"case \d+ of wrong"):
        check_many(check_loss, wrong, "reference", 100)
