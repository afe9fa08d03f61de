"""Calls of `commit` and `corrupt` that look like an earlier one take a short way, too."""

import pytest
import torch

import ggm_kernels
from ggm_kernels import NoiseLaw, commit, corrupt

pytestmark = [
    pytest.mark.skipif(not ggm_kernels.backends()["cpu"], reason="plans are of the compiled core"),
    pytest.mark.usefixtures("planned"),
]

B, L, V = 3, 5, 7
LAW = NoiseLaw(torch.full((V,), 1 / V))

COMMITS = {
    "all": {},
    "count": {"count": 2, "accepted": torch.zeros(B, L).bool()},
    "counts": {"count": torch.tensor([0, 1, 2]), "eligible": torch.eye(B, L).bool()},
    "limits": {"threshold": 0.2, "budget": torch.full((B,), 1.0), "rest": "noise", "noise": LAW},
    "noise": {"budget": 0.5, "rest": "noise", "vocab_size": V, "sample_ids": torch.tensor([4, 2, 0])},
}


@pytest.mark.parametrize("name", COMMITS)
def test_a_planned_commit_is_the_commit(name, planned):
    proposal, score = torch.arange(B * L).view(B, L), torch.rand(B, L)

    def result(step):
        tokens = torch.full((B, L), -1)
        commit(tokens, proposal, score, seed=2**64 - 1, step=step, **COMMITS[name])
        return tokens, torch.as_tensor(COMMITS[name].get("accepted", 0)).clone()

    expected = [result(step) for step in range(2)]
    assert not planned
    for step in range(2):
        assert all(map(torch.equal, result(step), expected[step]))
    assert planned == [0, 0]


@pytest.mark.parametrize(
    "keep_prob",
    [0.5, torch.rand(B), torch.rand(B, L), torch.rand(B, 1)],
    ids=["number", "by row", "by position", "column"],
)
@pytest.mark.parametrize("noise", [None, LAW, NoiseLaw.absorbing(V, V)], ids=str)
def test_a_planned_corrupt_is_corrupt(keep_prob, noise, planned):
    tokens = torch.randint(V, (B, L))
    frozen, ids = torch.eye(B, L).bool(), torch.tensor([4, 2, 0])

    def result(step):
        return corrupt(
            tokens.clone(), keep_prob, V, seed=3, step=step, noise=noise, frozen=frozen, sample_ids=ids
        )

    expected = [result(step) for step in range(2)]
    assert not planned
    for step in range(2):
        assert all(map(torch.equal, result(step), expected[step]))
    assert planned == [0, 0]


def test_plans_of_commit_and_corrupt_lose_no_check(planned):
    proposal, score, counts = torch.zeros(B, L).long(), torch.rand(B, L), torch.ones(B).long()
    keep_prob = torch.rand(B)
    for _ in range(3):
        tokens = torch.zeros(B, L).long()
        commit(tokens, proposal, score, count=counts, seed=1, step=0)
        corrupt(tokens, keep_prob, V, seed=1)
    assert planned == [0, 0]
    with pytest.raises(ValueError, match="proposal"):
        commit(tokens, tokens, score, count=counts, seed=1, step=0)
    with pytest.raises(ValueError, match="count"):
        commit(tokens, proposal, score, count=counts - 2, seed=1, step=0)
    with pytest.raises(ValueError, match="keep_prob"):
        corrupt(tokens, keep_prob + 1, V, seed=1)
    with pytest.raises(IndexError, match="tokens"):
        corrupt(tokens + V, keep_prob, V, seed=1)
    for wrong, error in ((-1, ValueError), (2**64, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="seed"):
            commit(tokens, proposal, score, count=counts, seed=wrong, step=0)
        with pytest.raises(error, match="seed"):
            corrupt(tokens, keep_prob, V, seed=wrong)
