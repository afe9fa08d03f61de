import pytest
import torch

from ggm.chain import Chain, ChainConfig
from ggm.sampling.stepwise import SamplingConfig, denoise, initial_tokens
from ggm.sampling.visits import OwnVisits

CHAIN = Chain.from_config(ChainConfig(length=7, sweeps=3))


@pytest.mark.parametrize("sites", [1, 2, 3, 7, 20])
def test_groups_undo_all_visits_last_first_and_stay_within_a_sweep(sites):
    groups = list(OwnVisits.of(CHAIN).groups(sites))
    steps = torch.cat([group.steps.flip(0) for group in groups])
    assert torch.equal(steps, torch.arange(CHAIN.steps).flip(0))
    for group in groups:
        assert group.time == group.coordinate == group.steps.min()
        assert len(group.steps) <= sites
        assert len(group.steps // 7) and (group.steps // 7).unique().numel() == 1
        assert torch.equal(group.positions, CHAIN.positions[group.steps])


def test_groups_leave_out_frozen_positions():
    frozen = torch.tensor([[False, True, False, False, True, True, False]]).expand(2, -1)
    groups = list(OwnVisits.of(CHAIN, frozen).groups(3))
    positions = torch.cat([group.positions for group in groups])
    assert torch.equal(positions.bincount(minlength=7), 3 * (~frozen[0]).long())
    assert len(groups) == 3 * 2
    for group in groups:
        between = range(group.time, int(group.steps.max()) + 1)
        skipped = {int(CHAIN.positions[s]) for s in between} - set(group.positions.tolist())
        assert all(frozen[0, i] for i in skipped)


@pytest.mark.parametrize("sites", [1, 2, 3, 7, 20])
def test_every_sequence_has_the_groups_that_it_has_alone(sites):
    frozen = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) < 0.4
    frozen[0], frozen[1] = False, True
    together = list(OwnVisits.of(CHAIN, frozen).groups(sites))
    for row in range(5):
        alone = {
            group.coordinate: group for group in OwnVisits.of(CHAIN, frozen[row : row + 1]).groups(sites)
        }
        assert len(alone) == 3 * -(-int((~frozen[row]).sum()) // sites)
        for group in together:
            drawn = ~frozen[row, group.positions[row]]
            assert group.positions[row].unique().numel() == len(drawn)
            if group.coordinate not in alone:  # this sequence waits, at the end of the sweep
                assert not drawn.any()
                assert group.time[row] == (group.coordinate // 7 + 1) * 7
                continue
            own = alone[group.coordinate]
            assert torch.equal(group.steps[row, drawn], own.steps)
            assert (int(group.time[row]), float(group.progress[row])) == (own.time, own.progress)


@pytest.mark.parametrize("frozen", [None, torch.arange(7) % torch.tensor([[2], [3]]) == 0])
def test_groups_are_where_they_are_asked_for(frozen):
    """On a device, so that no step has to bring them there."""
    visits, device = OwnVisits.of(CHAIN, frozen), torch.device("meta")
    for here, there in zip(visits.groups(3), visits.groups(3, device=device), strict=True):
        assert there.steps.device == there.positions.device == device
        assert there.steps.shape == here.steps.shape and there.positions.shape == here.positions.shape
        assert there.coordinate == here.coordinate
        if frozen is None:
            assert there.time == here.time
        else:
            assert there.time.device == device and torch.equal(there.progress, here.progress)


def test_conditionals_are_asked_at_the_time_before_the_visits_and_observed_after():
    asked, observed = [], []

    def conditionals(tokens, positions, time):
        asked.append((time, positions.tolist()))
        return torch.zeros(len(tokens), len(positions), 4)

    start = initial_tokens(torch.arange(2), 7, 4, seed=0)
    result = denoise(
        conditionals,
        CHAIN,
        start,
        SamplingConfig(),
        seed=0,
        observe=lambda t, tokens: observed.append((t, tokens.clone())),
    )
    assert asked == [(t, [int(CHAIN.positions[t])]) for t in reversed(range(CHAIN.steps))]
    assert [t for t, _ in observed] == list(range(CHAIN.steps, -1, -1))
    assert torch.equal(observed[0][1], start)
    assert torch.equal(observed[-1][1], result.tokens)
    assert result.network_evaluations == CHAIN.steps
    assert result.seconds > 0
    for (t, after), (_, before) in zip(observed[1:], observed[:-1], strict=True):
        changed = (after != before).any(0).nonzero().flatten().tolist()
        assert changed in ([], [int(CHAIN.positions[t])])


def test_argument_is_not_written_to_and_point_masses_are_reached():
    target = torch.tensor([3, 0, 1, 2, 2, 1, 0])

    def conditionals(tokens, positions, time):
        logits = torch.full((len(tokens), len(positions), 4), -1e9)
        return logits.scatter(2, target[positions].expand(len(tokens), -1)[..., None], 0.0)

    start = initial_tokens(torch.arange(3), 7, 4, seed=0)
    kept = start.clone()
    result = denoise(conditionals, CHAIN, start, SamplingConfig(sites_per_step=3), seed=0)
    assert torch.equal(start, kept)
    assert torch.equal(result.tokens, target.expand(3, -1))


def test_a_group_of_no_site_is_refused():
    with pytest.raises(ValueError, match="sites_per_step: got 0"):
        SamplingConfig(sites_per_step=0)
