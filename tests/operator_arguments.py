"""Arguments of the steps as operators, by the names of their schema."""

from ggm_kernels.arguments.glauber_step import BY_PRODUCTS
from ggm_kernels.ops.glauber_update import UPDATE_SCHEMA

_BETWEEN = UPDATE_SCHEMA.partition(")? log_sum_exp")[0].split(", ")[1:-1]
_NAMES = [name.rsplit(" ", 1)[-1] for name in _BETWEEN] + list(BY_PRODUCTS)
_PLAIN = {"temperature": 1.0, "normalize": False, "top_p_first": False}


def arguments_of_op(update, backend):
    """Arguments of the schema behind the positions; what `update` does not say is None, False or 1."""
    assert set(update) <= set(_NAMES)
    return *(update.get(name, _PLAIN.get(name)) for name in _NAMES), backend
