"""The hollow network: blind to its own token to the bit, in sight of everything else; trained, saved."""

import dataclasses

import pytest
import torch
from laws import check_law
from torch.nn.functional import linear

from ggm import GGM, ChainConfig, DenoiserConfig, GGMConfig, HollowConfig, MaskedConfig, ObjectiveConfig
from ggm.backbones import hollow
from ggm.backbones.hollow import HollowTransformer

LENGTH, VOCAB = 12, 5

VARIANTS = [
    {"positions": "learned"},
    {"positions": "rotary"},
    {"positions": "both", "grid": (3, 4)},
    {"tied": True},
    {"depth": 1, "mixing": 1},
]


def shake(model: torch.nn.Module) -> None:
    """Leave no part at rest: zeros of the initialisation become something."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def network(length: int = LENGTH, dtype: torch.dtype = torch.float32, **options) -> HollowTransformer:
    torch.manual_seed(0)
    options = {"width": 16, "depth": 2, "mixing": 2, "heads": 2, **options}
    model = HollowTransformer(HollowConfig(**options), VOCAB, length)
    shake(model)
    return model.to(dtype)


def one_sequence(rows: int, length: int = LENGTH):
    """The same tokens, time and keep probabilities in every row."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCAB, (1, length), generator=generator).expand(rows, -1)
    time = torch.rand(1, generator=generator).expand(rows)
    keep_prob = torch.rand(1, length, generator=generator).expand(rows, -1)
    return tokens, time, keep_prob


def check_leaves_one_out(model: HollowTransformer, length: int = LENGTH) -> None:
    """Put every token at every position: only the output at that position stays, to the bit."""
    tokens, time, keep_prob = one_sequence(length * VOCAB, length)
    where = torch.arange(length).repeat_interleave(VOCAB)
    changed = tokens.scatter(1, where[:, None], torch.arange(VOCAB).repeat(length)[:, None])
    same = model(changed, None, time, keep_prob) == model(tokens, None, time, keep_prob)
    same = same.all(dim=-1)
    own = torch.nn.functional.one_hot(where, length).bool()
    assert same[own].all(), "a prediction sees its own token"
    really = (changed != tokens).any(dim=1)
    assert not same[really][~own[really]].any(), "a prediction misses another token"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", VARIANTS)
def test_prediction_sees_every_token_but_its_own_to_the_bit(options, dtype):
    # A change is not lost in bfloat16 only if it is large enough: wider than the others' network.
    check_leaves_one_out(network(dtype=dtype, width=32, **options))


@pytest.mark.parametrize("length", [1, 2, 33])
def test_lengths_at_the_edge_of_blocks_leave_one_out(length):
    check_leaves_one_out(network(length), length)


def test_check_notices_streams_that_are_not_shifted(monkeypatch):
    monkeypatch.setattr(hollow, "shifted", lambda states: states[:, 1:])
    with pytest.raises(AssertionError, match="sees its own"):
        check_leaves_one_out(network())


def test_check_notices_mixing_across_the_position(monkeypatch):
    real = hollow._seen
    monkeypatch.setattr(hollow, "_seen", lambda *args: torch.ones_like(real(*args)))
    with pytest.raises(AssertionError, match="sees its own"):
        check_leaves_one_out(network())


def test_check_notices_a_stream_that_is_missing(monkeypatch):
    monkeypatch.setattr(hollow, "shifted", lambda states: torch.zeros_like(states[:, 1:]))
    with pytest.raises(AssertionError, match="misses another"):
        check_leaves_one_out(network())


@pytest.mark.parametrize("options", VARIANTS)
def test_chosen_positions_are_rows_of_all(options):
    model = network(**options)
    tokens, time, keep_prob = one_sequence(3)
    positions = torch.stack([torch.randperm(LENGTH)[:4] for _ in range(3)])
    everything = model(tokens, None, time, keep_prob)
    assert everything.shape == (3, LENGTH, 16)
    chosen = everything.gather(1, positions[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(model(tokens, positions, time, keep_prob), chosen)
    linear(chosen, model.head_weight, model.head_bias).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("options", VARIANTS)
def test_time_and_every_keep_probability_are_told(options):
    model = network(**options)
    tokens, time, keep_prob = one_sequence(LENGTH)
    expected = model(tokens, None, time, keep_prob)
    assert (model(tokens, None, 1 - time, keep_prob) != expected).any(-1).all()
    other = keep_prob.clone()
    other.diagonal().copy_(1 - other.diagonal())
    assert (model(tokens, None, time, other) != expected).any(-1).all()


@pytest.mark.parametrize(
    "bad",
    [
        {"heads": 3},
        {"depth": 0},
        {"mixing": 0},
        {"positions": "none"},
        {"attention": "slow"},
        {"grid": (5, 5)},
    ],
)
def test_bad_configurations_are_refused(bad):
    with pytest.raises(ValueError, match="allowed"):
        network(**bad)


CONFIG = GGMConfig(
    vocab_size=VOCAB,
    chain=ChainConfig(length=6, sweeps=3),
    backbone=HollowConfig(width=16, depth=1, mixing=1, heads=2, positions="both", grid=(2, 3)),
    masked_counts=(1, 6),
    frozen_share=0.5,
)
DATA = torch.randint(VOCAB, (9, 6), generator=torch.Generator().manual_seed(0))


def ggm(**changes) -> GGM:
    torch.manual_seed(0)
    model = GGM(dataclasses.replace(CONFIG, **changes))
    shake(model)
    return model


@pytest.mark.parametrize("backbone", [MaskedConfig(grid=(2, 3)), CONFIG.backbone])
def test_configurations_carry_their_kind_of_network(backbone):
    config = dataclasses.replace(CONFIG, backbone=backbone)
    values = config.to_dict()
    assert GGMConfig.from_dict(values) == config
    listed = {**values["backbone"], "grid": [2, 3]}  # as JSON has tuples
    gridded = dataclasses.replace(backbone, grid=(2, 3))
    assert GGMConfig.from_dict({**values, "backbone": listed}).backbone == gridded
    with pytest.raises(ValueError, match="backbone.kind: got 'other'; allowed: denoiser, hollow, masked"):
        GGMConfig.from_dict({**values, "backbone": {**listed, "kind": "other"}})


def test_saved_and_loaded_models_agree(tmp_path):
    model = ggm()
    model.save_pretrained(tmp_path)
    loaded = GGM.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.loss(DATA, 0, 1), model.loss(DATA, 0, 1))


@pytest.mark.parametrize("form", ["observed", "marginal", "cross_entropy"])
@pytest.mark.parametrize("step", [0, 1])
def test_loss_does_not_depend_on_batch_order_or_split(form, step):
    model = ggm(objective=ObjectiveConfig(form))
    whole = model.loss(DATA, 0, step)
    parts = [model.loss(DATA[i : i + 3], 0, step, sample_ids=torch.arange(i, i + 3)) for i in (0, 3, 6)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    whole.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_every_step_of_the_chain_is_trained_and_its_visit_predicted_first():
    model = ggm()
    ids = torch.arange(20_000)
    for step, sites in enumerate(CONFIG.masked_counts):
        times, steps = model._draw_visits(ids, seed=0, step=step)
        assert torch.equal(steps[:, 0], times)
        assert torch.equal(steps // 6, (times // 6)[:, None].expand_as(steps))
        positions, _ = model.chain.visits(steps)
        assert all(len(set(row)) == sites for row in positions[:50].tolist())
        shares = times.bincount(minlength=18) / len(times)
        assert (shares - 1 / 18).abs().max() < 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": ObjectiveConfig("cross_entropy")},
        {"backbone": MaskedConfig(width=16, depth=1, heads=2), "masked_counts": (4,), "frozen_share": 1.0},
        {
            "backbone": DenoiserConfig(width=16, depth=1, heads=2),
            "predicts": "data",
            "objective": ObjectiveConfig("marginal", candidates=2, noise_ratio=4.0),
        },
    ],
    ids=["hollow", "masked", "denoiser"],
)
def test_sweeps_are_trained_by_the_share_that_they_keep(changes):
    model, ids = ggm(training_times="kept", **changes), torch.arange(20_000)
    assert model.loss(DATA, 0, 0).isfinite()
    kept = model.chain.keep_prob(torch.arange(0, 19, 6)).mean(dim=1)  # before and after each of the 3 sweeps
    weights = kept[:-1] + kept[1:]
    times, steps = model._draw_visits(ids, seed=0, step=0)
    assert torch.equal(steps // 6, (times // 6)[:, None].expand_as(steps))
    check_law(times // 6, weights)
    for place in (times % 6).unique():
        check_law(times[times % 6 == place] // 6, weights)
    with pytest.raises(AssertionError):
        check_law(times // 6, torch.ones(3))
    # Calibration looks at all times alike: a number of the model and not of its training.
    times, _ = model._draw_visits(ids, seed=0, step=0, count=1)
    check_law(times // 6, torch.ones(3))


def test_clean_positions_are_neither_visited_nor_learned(monkeypatch):
    model = ggm(frozen_share=1.0)
    ids = torch.arange(500)
    times, steps = model._draw_visits(ids, seed=0, step=1)
    positions, _ = model.chain.visits(steps)
    frozen = model._draw_frozen(ids, positions, seed=0, step=1)
    assert not frozen.gather(1, positions[:, :1]).any()
    assert 0.2 < frozen.float().mean() < 0.6


def test_clean_positions_have_no_loss(monkeypatch):
    losses = []
    for counts in [(1,), (6,)]:
        model = ggm(masked_counts=counts, frozen_share=1.0)
        everything = torch.ones(9, 6, dtype=torch.bool)
        monkeypatch.setattr(
            model, "_draw_frozen", lambda ids, at, *_, all=everything: all.scatter(1, at[:, :1], False)
        )
        losses.append(model.loss(DATA, 0, 0))
    torch.testing.assert_close(losses[0], 6 * losses[1])


def test_training_reaches_the_conditionals_of_a_law_that_noise_hides_at_both_neighbours():
    """x1 = x0 and x2 = x1: after training, clean neighbours tell the middle token."""
    torch.manual_seed(0)
    config = GGMConfig(
        vocab_size=3,
        chain=ChainConfig(length=3, sweeps=2),
        backbone=HollowConfig(width=32, depth=1, mixing=1, heads=2),
        objective=ObjectiveConfig("cross_entropy"),
        masked_counts=(3,),
    )
    model = GGM(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    data = torch.arange(3).repeat(100)[:, None].expand(-1, 3).contiguous()
    for step in range(150):
        loss = model.loss(data, 0, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        hidden = model.backbone(data[:3], None, torch.zeros(3), torch.ones(3, 3))
    probs = linear(hidden, model.backbone.head_weight, model.backbone.head_bias).softmax(-1)
    assert (probs.gather(2, data[:3, :, None]) > 0.9).all()
