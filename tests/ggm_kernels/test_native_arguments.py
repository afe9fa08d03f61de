"""Arguments of the compiled core: given by name, none left out, none in the place of another."""

import pytest

from ggm_kernels import native

pytestmark = pytest.mark.skipif(native.core is None, reason="no compiled core")

TILE = {"logits": 0, "row_stride": 4, "bias": 0, "offset": 0, "weight": 0, "rows": 0, "columns": 4}


def shared_tile(**changes):
    return native.core.SharedTile(**{**TILE, **changes})


def test_names_in_any_order():
    assert shared_tile() is not None
    assert native.core.SharedTile(**dict(reversed(TILE.items()))) is not None


@pytest.mark.parametrize("left_out", TILE)
def test_a_field_left_out_is_named(left_out):
    with pytest.raises(TypeError, match=f"^SharedTile: no {left_out}$"):
        native.core.SharedTile(**{name: value for name, value in TILE.items() if name != left_out})


def test_a_field_that_there_is_not():
    with pytest.raises(TypeError, match="^SharedTile: fields that it does not have$"):
        shared_tile(stride=1)


@pytest.mark.parametrize("value", [1.5, "4", None])
def test_a_field_of_another_type_is_named(value):
    with pytest.raises(TypeError, match=f"^SharedTile: rows got {value!r}$"):
        shared_tile(rows=value)


def test_no_argument_by_its_place():
    with pytest.raises(TypeError):
        native.core.SharedTile(*TILE.values())
    with pytest.raises(TypeError):
        native.core.cpu_philox(0, 0, 0, 0)
    native.core.cpu_philox(counters=0, words=0, count=0, seed=0)


def test_plans_say_which_addresses_they_take():
    for plan in (native.core.StepPlan, native.core.CommitPlan, native.core.CorruptPlan):
        assert len(set(plan.names)) == len(plan.names)
        assert {"tokens", "sample_ids"} < set(plan.names)
