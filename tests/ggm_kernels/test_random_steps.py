"""`glauber_step` with options in random combinations, against the float64 truth of tests/truth.py, by-products included.

tests/step_cases.py draws and judges them; tests/random_cases.py tells how many there are.
"""

import numpy as np
import pytest
import truth
from random_cases import check_many, few, many
from step_cases import BY_PRODUCTS, check_step, value_at

from ggm_kernels import glauber_step, linear_glauber_step

OP = "glauber_step"
STEPS = [glauber_step, linear_glauber_step]


def check_many_steps(call, backend, count):
    rows, judged = map(sum, zip(*check_many(check_step, call, backend, count), strict=True))
    assert judged > 0.9 * rows - 3  # what float32 may decide either way is seldom


@pytest.mark.parametrize("call", STEPS)
def test_steps_agree_with_the_truth(backend, call):
    check_many_steps(call, backend, few(backend))


@pytest.mark.slow
@pytest.mark.parametrize("call", STEPS)
def test_many_steps_agree_with_the_truth(backend, call):
    check_many_steps(call, backend, many(backend))


def test_philox_of_the_truth_gives_known_answers():
    """Of Random123's kat_vectors: counter, key, words."""
    vectors = [
        ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0_A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for counter, key, words in vectors:
        assert truth.philox4x32(np.array(counter, dtype=np.uint64), key).tolist() == words


# Faults that the truth must see: what is done to the arguments of a step, or to what it gives.
FAULTS = {
    "another step": lambda given: {"step": (int(given["step"]) + 1) % 2**32},
    "warmer": lambda given: {"temperature": given["temperature"] * 1.05},
    "one token more": lambda given: {"top_k": None if given["top_k"] is None else given["top_k"] + 1},
    "a smaller nucleus": lambda given: {"top_p": None if given["top_p"] is None else given["top_p"] * 0.9},
    "no min_p": lambda given: {"min_p": None},
    "the other order": lambda given: {"filter_order": "k_p_min"},
    "a wider cap": lambda given: {"softcap": None if given["softcap"] is None else given["softcap"] * 1.05},
    "no shift": lambda given: {"logit_shift": None},
    "no mixture": lambda given: {"mixture": None},
    "one seed for all": lambda given: {"seed": value_at(given["seed"], 0, 0)},
    "one step for all": lambda given: {"step": value_at(given["step"], 0, 0)},
    "one temperature for all": lambda given: {"temperature": value_at(given["temperature"], 0, 0)},
    "normalize forgotten": lambda given: {"normalize": False},
    "no noise law": lambda given: {"noise": None},
    "rate for all": lambda given: {
        "noise_rate": rate if (rate := given.get("noise_rate")) is None else rate / 2
    },
    "nothing frozen": lambda given: {"frozen": None},
    "ids forgotten": lambda given: {"sample_ids": None},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_of_a_step_is_seen(fault):
    def wrong(**given):
        return glauber_step(**{**given, **FAULTS[fault](given)})

    with pytest.raises(AssertionError, match=r"case \d+ of wrong"):
        check_many(check_step, wrong, "reference", 1000)  # up to the first that is seen


@pytest.mark.parametrize("name", BY_PRODUCTS)
def test_a_wrong_by_product_is_seen(name):
    def wrong(**given):
        glauber_step(**given)
        if name in given:
            given[name] += 1 if name == "argmax" else 1e-3

    with pytest.raises(AssertionError, match=r"case \d+ of wrong"):
        check_many(check_step, wrong, "reference", 100)
