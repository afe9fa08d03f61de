"""`linear_cross_entropy`: values, gradients, what rows count, order of sums, memory."""

import pytest
import torch
from cross_entropy_cases import check_case
from cross_entropy_problem import IGNORED, leaves_of, problem
from random_cases import DTYPES, check_many, few, many
from torch.nn.functional import cross_entropy, linear

from ggm_kernels import linear_cross_entropy

OP = "linear_cross_entropy"


def test_random_cases_agree_with_the_truth(backend):
    check_many(check_case, linear_cross_entropy, backend, min(60, few(backend)))


@pytest.mark.slow
def test_many_random_cases_agree_with_the_truth(backend):
    check_many(check_case, linear_cross_entropy, backend, min(1000, many(backend)))


@pytest.mark.parametrize("fault", ["row_weight", "softcap", "z_loss", "logit_shift", "ignore_index", "bias"])
def test_a_planted_fault_is_seen(fault):
    def wrong(**given):
        if fault == "z_loss":
            given = {**given, fault: given[fault] * 1.01}
        elif fault == "logit_shift" and fault in given:
            given = {**given, fault: -given[fault]}
        elif fault == "ignore_index":
            given = {**given, "targets": given["targets"].clamp(0, len(given["weight"]) - 1), fault: -7}
        elif fault in given:
            given = {**given, fault: None}
        return linear_cross_entropy(**given)

    with pytest.raises(AssertionError, match=r"case \d+ of wrong"):
        check_many(check_case, wrong, "reference", 100)


def test_equals_cross_entropy_of_pytorch(backend):
    """Where both have it: plain losses, their mean, an ignored target."""
    inputs = {name: problem()[name] for name in ("hidden", "weight", "bias", "targets")}
    logits = linear(inputs["hidden"], inputs["weight"], inputs["bias"])
    for reduction in ("none", "sum", "mean"):
        given = linear_cross_entropy(**inputs, reduction=reduction, backend=backend)
        expected = cross_entropy(logits, inputs["targets"], reduction=reduction)
        torch.testing.assert_close(given, expected)
        pairs = [
            torch.autograd.grad(loss.sum(), leaves_of(inputs), retain_graph=True)
            for loss in (given, expected)
        ]
        torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_second_use_of_one_graph_gives_the_same(backend, reduction):
    inputs = problem()
    loss = linear_cross_entropy(**inputs, reduction=reduction, backend=backend).sum()
    loss.backward(retain_graph=True)
    first = [leaf.grad.clone() for leaf in leaves_of(inputs)]
    for leaf in leaves_of(inputs):
        leaf.grad.mul_(7.0)  # what a caller does with a gradient must not reach the graph's own
        leaf.grad = None
    (loss * 3.0).backward()
    for leaf, gradient in zip(leaves_of(inputs), first, strict=True):
        torch.testing.assert_close(leaf.grad, 3 * gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_rows_that_do_not_count_are_as_if_not_there(backend, reduction):
    """Not even a NaN of theirs is seen."""
    inputs = problem()
    counts = torch.tensor([True, False, True, False, True])
    hidden = inputs["hidden"].detach().clone()
    hidden[~counts] = torch.nan
    row_weight = inputs["row_weight"].clone()
    row_weight[3] = 0.0
    given = {**inputs, "hidden": hidden.requires_grad_(), "row_weight": row_weight}
    loss = linear_cross_entropy(**given, reduction=reduction, backend=backend)
    gradients = torch.autograd.grad(loss.sum(), leaves_of(given))
    per_row = ("hidden", "targets", "row_weight", "logit_shift", "shifted_token")
    alone = {name: value[counts] if name in per_row else value for name, value in given.items()}
    expected = linear_cross_entropy(**alone, reduction=reduction, backend=backend)
    torch.testing.assert_close(loss.sum(), expected.sum())
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), leaves_of(given)))
    assert (gradients[0][~counts] == 0).all()


def test_a_row_with_nan_makes_its_own_loss_nan_alone(backend):
    inputs = problem()
    hidden = inputs["hidden"].detach().clone()
    hidden[2] = torch.nan
    loss = linear_cross_entropy(**{**inputs, "hidden": hidden}, backend=backend)
    assert loss.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("kept", [3, 40, 70_000])  # the last in several tiles
def test_the_log_sum_exp_of_nan_beside_infinity_is_nan(kept):
    """And infinite without; said of the CPU's backends, GPUs' take infinity."""
    bias = torch.zeros(kept)
    bias[0] = torch.inf
    for backend in ("reference", "cpu"):
        for last, expected in ((torch.nan, torch.nan), (0.0, torch.inf)):
            bias[-1] = last
            _, found = linear_cross_entropy(
                torch.zeros(1, 3), torch.zeros(kept, 3), torch.tensor([1]), bias=bias, return_log_sum_exp=True,
                backend=backend,
            )  # fmt: skip
            torch.testing.assert_close(found, torch.tensor([expected]), equal_nan=True)


def test_a_token_that_has_no_probability(backend):
    """Bias -inf: no gradient, an infinite loss where it is the target."""
    inputs = {name: problem()[name] for name in ("hidden", "weight", "bias")}
    inputs["bias"] = inputs["bias"].detach().clone()
    inputs["bias"][3] = -torch.inf
    targets = torch.tensor([3, 0, 1, 2, 4])
    loss, log_sum_exp = linear_cross_entropy(
        **inputs, targets=targets, return_log_sum_exp=True, backend=backend
    )
    assert loss[0] == torch.inf and loss[1:].isfinite().all() and log_sum_exp.isfinite().all()
    gradient = torch.autograd.grad(loss[1:].sum(), inputs["weight"])[0]
    assert gradient.isfinite().all() and (gradient[3] == 0).all()


def test_nothing_to_count(backend):
    inputs = problem()
    for rows in (0, 2):
        of_rows = ("hidden", "targets", "row_weight", "logit_shift", "shifted_token")
        few_rows = {name: value[:rows] if name in of_rows else value for name, value in inputs.items()}
        few_rows["targets"] = torch.full((rows,), IGNORED)
        for reduction in ("none", "sum", "mean"):
            loss = linear_cross_entropy(**few_rows, reduction=reduction, backend=backend)
            assert loss.isnan() if reduction == "mean" else (loss == 0).all()
            gradients = torch.autograd.grad(loss.sum(), leaves_of(inputs), allow_unused=True)
            assert all(gradient is None or (gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_the_same_to_the_bit_on_any_number_of_threads(dtype):
    """Shapes whose products a library cuts up by the number of threads among them."""
    threads = torch.get_num_threads()
    for rows, vocab_size, size in [(140, 600, 1030), (16, 300, 1030), (140, 300, 768)]:
        inputs = problem(rows, vocab_size, size, dtype)
        results = []
        for number in (1, 2, 3, 8):
            torch.set_num_threads(number)
            try:
                for reduction in ("none", "mean"):
                    loss = linear_cross_entropy(**inputs, reduction=reduction, backend="cpu")
                    results.append([loss, *torch.autograd.grad(loss.sum(), leaves_of(inputs))])
                    assert torch.get_num_threads() == number
            finally:
                torch.set_num_threads(threads)
        for result in results:
            expected = results[0 if result[0].dim() else 1]
            assert all(map(torch.equal, result, expected))


def test_gradcheck_in_float64():
    inputs = problem(dtype=torch.float64)
    for reduction in ("none", "sum", "mean"):

        def both(hidden, weight, bias, reduction=reduction):
            return linear_cross_entropy(
                **{**inputs, "hidden": hidden, "weight": weight, "bias": bias},
                reduction=reduction, return_log_sum_exp=True,
            )  # fmt: skip

        assert torch.autograd.gradcheck(both, tuple(leaves_of(inputs)), fast_mode=True)
