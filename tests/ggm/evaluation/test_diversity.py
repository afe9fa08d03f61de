import math

import pytest
import torch

from ggm.evaluation.diversity import diversity, unigram_entropy


def test_entropy_by_hand():
    assert unigram_entropy("aab") == pytest.approx(-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3))
    assert unigram_entropy([7] * 5) == 0
    assert unigram_entropy(range(8)) == pytest.approx(math.log(8))


def test_mean_and_pooled_differ_where_they_should():
    found = diversity([[1, 1], [2, 2, 2, 3], []])
    entropy = found["unigram_entropy"]
    second = -(3 / 4) * math.log(3 / 4) - (1 / 4) * math.log(1 / 4)
    assert entropy["per_sample_mean"] == pytest.approx((0 + second) / 2)
    shares = (2 / 6, 3 / 6, 1 / 6)
    assert entropy["pooled"] == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert found["distinct"] == {
        "1": {"per_sample_mean": pytest.approx((1 / 2 + 2 / 4) / 2), "pooled": pytest.approx(3 / 6)},
        # 11 | 22 22 23
        "2": {"per_sample_mean": pytest.approx((1 + 2 / 3) / 2), "pooled": pytest.approx(3 / 4)},
        # none | 222 223: n-grams do not cross from one sample to the next
        "3": {"per_sample_mean": pytest.approx(1.0), "pooled": pytest.approx(1.0)},
    }


def test_nothing_to_count_is_none():
    assert diversity([[], []])["unigram_entropy"] == {"per_sample_mean": None, "pooled": None}
    assert diversity([[4]])["distinct"]["2"] == {"per_sample_mean": None, "pooled": None}


def test_entropy_of_draws_is_that_of_their_law_and_shows_a_lower_temperature():
    logits = torch.linspace(0, 3, 32, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def measured(temperature: float) -> float:
        draws = torch.multinomial(
            (logits / temperature).softmax(0), 200_000, replacement=True, generator=generator
        )
        return diversity(draws.view(200, 1000).tolist())["unigram_entropy"]["pooled"]

    probs = logits.softmax(0)
    exact = float(-(probs * probs.log()).sum())
    # Standard deviation of -log p over the square root of the draws, and the plug-in bias.
    allowed = 5 * float((probs * (probs.log() + exact) ** 2).sum().sqrt()) / math.sqrt(200_000) + 32 / 400_000
    assert abs(measured(1.0) - exact) < allowed
    assert exact - measured(0.9) > 5 * allowed
