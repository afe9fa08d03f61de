import math

import pytest
import torch
from torch.nn.functional import linear

from ggm.backbones.layers import rotary_turns, rotate
from ggm.backbones.masked import MaskedConfig, MaskedTransformer

LENGTH, VOCAB, BATCH = 12, 7, 5


def network(**options) -> MaskedTransformer:
    """A network none of whose parts is at rest: zeros of the initialisation are shaken."""
    torch.manual_seed(0)
    options = {"width": 16, "depth": 2, "heads": 2, **options}
    model = MaskedTransformer(MaskedConfig(**options), VOCAB, LENGTH)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(sites: int):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCAB, (BATCH, LENGTH), generator=generator)
    keys = torch.rand(BATCH, LENGTH, generator=generator)
    positions = keys.argsort(dim=1)[:, :sites]
    time = torch.rand(BATCH, generator=generator)
    keep_prob = torch.rand(BATCH, LENGTH, generator=generator)
    return tokens, positions, time, keep_prob


VARIANTS = [
    {"positions": "learned"},
    {"positions": "rotary"},
    {"positions": "both", "grid": (3, 4)},
    {"tied": True},
    {"depth": 1},
]


@pytest.mark.parametrize("sites", [1, 3, LENGTH])
@pytest.mark.parametrize("options", VARIANTS)
def test_shapes_and_head(options, sites):
    model = network(**options)
    hidden = model(*inputs(sites))
    assert hidden.shape == (BATCH, sites, 16)
    assert model.head_weight.shape == (VOCAB, 16)
    assert model.head_bias.shape == (VOCAB,)
    linear(hidden, model.head_weight, model.head_bias).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("sites", [1, 3])
@pytest.mark.parametrize("options", VARIANTS)
def test_prediction_does_not_see_the_masked_tokens_to_the_bit(options, sites):
    model = network(**options)
    tokens, positions, time, keep_prob = inputs(sites)
    expected = model(tokens, positions, time, keep_prob)
    for token in range(VOCAB):
        changed = tokens.scatter(1, positions, token)
        assert torch.equal(model(changed, positions, time, keep_prob), expected)


@pytest.mark.parametrize("options", VARIANTS)
def test_prediction_sees_every_other_token_time_and_noise_level(options):
    model = network(**options)
    tokens, _, time, keep_prob = inputs(1)
    positions = torch.full((BATCH, 1), 4)
    expected = model(tokens, positions, time, keep_prob)

    def differs(*arguments) -> bool:
        return bool((model(*arguments) != expected).flatten(1).any(1).all())

    for other in set(range(LENGTH)) - {4}:
        changed = tokens.clone()
        changed[:, other] = (changed[:, other] + 1) % VOCAB
        assert differs(changed, positions, time, keep_prob)
    assert differs(tokens, positions, 1 - time, keep_prob)
    assert differs(tokens, positions, time, 1 - keep_prob)


def test_order_of_the_masked_positions_does_not_matter():
    model = network()
    tokens, positions, time, keep_prob = inputs(4)
    hidden = model(tokens, positions, time, keep_prob)
    flipped = model(tokens, positions.flip(1), time, keep_prob)
    torch.testing.assert_close(flipped.flip(1), hidden)


def test_a_new_network_predicts_the_uniform_law():
    model = MaskedTransformer(MaskedConfig(width=16, heads=2), VOCAB, LENGTH)
    hidden = model(*inputs(2))
    logits = linear(hidden, model.head_weight, model.head_bias)
    torch.testing.assert_close(logits, torch.full_like(logits, -math.log(VOCAB)))


def test_rotary_products_depend_on_the_difference_of_positions():
    turns = rotary_turns((4, 5), 8)
    query, key = torch.randn(2, 8)
    turned_query = rotate(query.expand(1, 20, 1, 8), turns[None])[0, :, 0]
    turned_key = rotate(key.expand(1, 20, 1, 8), turns[None])[0, :, 0]
    products = (turned_query @ turned_key.T).view(4, 5, 4, 5)
    torch.testing.assert_close(products[0, 0, 1, 2], products[2, 1, 3, 3])
    torch.testing.assert_close(turned_query.norm(dim=1), query.norm().expand(20))
    assert (products[0, 0, 1, 2] - products[0, 0, 2, 1]).abs() > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rotations_keep_the_dtype(dtype):
    heads = torch.randn(2, 20, 1, 8).to(dtype)
    turns = rotary_turns((4, 5), 8)[None]
    turned = rotate(heads, turns)
    assert turned.dtype == dtype
    # Computed in full, then rounded once.
    assert torch.equal(turned, rotate(heads.double(), turns.double()).to(dtype)) or dtype.itemsize > 2
    torch.testing.assert_close(turned.double(), rotate(heads.double(), turns.double()), rtol=1e-2, atol=1e-2)


def test_a_cast_to_half_precision_keeps_positions_apart():
    model = MaskedTransformer(MaskedConfig(width=32, depth=1, heads=1, positions="rotary"), VOCAB, 1024)
    heads, turns = torch.randn(1, 1024, 1, 32), model.turns
    expected = rotate(heads, turns[None])
    got = rotate(heads.bfloat16(), model.bfloat16().turns[None])
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"heads": 3},
        {"depth": 0},
        {"positions": "none"},
        {"attention": "slow"},
        {"grid": (5, 5)},
        {"positions": "rotary", "grid": (3, 2, 2)},
    ],
)
def test_bad_configurations_are_refused(options):
    with pytest.raises(ValueError, match="allowed"):
        network(**options)
