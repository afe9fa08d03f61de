"""`linear_cross_entropy` with options in random combinations, held against the float64 truth: `check_case` runs one."""

import torch
import truth
from cross_entropy_problem import IGNORED
from random_cases import DTYPES, SMALL, Draw

# Products are rounded to bfloat16, as those of `linear` are; float16 is multiplied in float32.
PRODUCT = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-22}
RESULT = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


def array(value):
    return None if value is None else value.detach().double().numpy()


def close(given, expected, size, dtype, name):
    """Within what products and results round, of terms that sum to `size`; `size` is an array or a number."""
    error = abs(array(given) - expected)
    allowed = (4 * PRODUCT[dtype] + 1e-6) * size + RESULT[dtype] * abs(expected) + 1e-7
    assert (error <= allowed).all(), (name, float((error - allowed).max()))


def draw_case(draw):
    rows, vocab_size, size = (
        draw.randint(0, 40),
        draw.choice([*SMALL, 300, 1000]),
        draw.choice([1, 3, 16, 33]),
    )
    dtype, ignored = draw.choice(DTYPES), draw.choice([IGNORED, -1, 0, vocab_size + 3])
    integers = draw.choice([torch.int32, torch.int64])
    targets = draw.integers(vocab_size, rows)
    targets[draw.uniform_tensor(rows) < draw.choice([0, 0.3])] = ignored
    weights = lambda: draw.uniform_tensor(rows).masked_fill(draw.uniform_tensor(rows) < 0.2, 0.0)  # noqa: E731
    arguments = {
        "targets": draw.layout(targets.to(integers)),
        "ignore_index": ignored,
        "row_weight": draw.maybe(0.6, weights),
        "softcap": draw.maybe(0.4, lambda: draw.uniform(1, 20)),
        "z_loss": draw.choice([0.0, 0.0, 1e-3, 0.1]),
        "reduction": draw.choice(["none", "sum", "mean"]),
    }
    if draw.random() < 0.4:
        arguments["logit_shift"] = draw.normal(rows).to(draw.choice(DTYPES))
        arguments["shifted_token"] = draw.integers(vocab_size, rows).to(integers)
    scale = draw.choice([0.1, 1.0, 3.0])
    leaves = {
        "hidden": draw.normal(rows, size).to(dtype),
        "weight": (draw.normal(vocab_size, size) * scale).to(dtype),
    }
    if draw.random() < 0.5:
        leaves["bias"] = draw.normal(vocab_size).to(dtype)
    leaves = {name: draw.layout(value).requires_grad_(draw.random() < 0.8) for name, value in leaves.items()}
    return leaves, arguments, dtype


def check_case(call, backend, number):
    draw = Draw(number)
    leaves, arguments, dtype = draw_case(draw)
    hidden, weight, bias = (array(leaves.get(name)) for name in ("hidden", "weight", "bias"))
    counts = array(arguments["targets"] != arguments["ignore_index"])
    row_weight = counts if arguments["row_weight"] is None else counts * array(arguments["row_weight"])
    products = hidden @ weight.T + (0 if bias is None else bias)
    shifts = {}
    if "logit_shift" in arguments:
        shifts = {"shift": array(arguments["logit_shift"]), "shifted": arguments["shifted_token"].numpy()}
    loss, log_sum_exp, slopes, shares = truth.cross_entropy(
        products, arguments["targets"].numpy(), row_weight, softcap=arguments["softcap"],
        z_loss=arguments["z_loss"], **shifts,
    )  # fmt: skip

    both = draw.random() < 0.4
    given = call(**leaves, **arguments, return_log_sum_exp=both, backend=backend)
    given, given_log_sum_exp = given if both else (given, None)
    assert given.dtype == torch.float32
    total, z = row_weight.sum(), arguments["z_loss"]
    if arguments["reduction"] == "mean" and total == 0:
        assert given.isnan()
        return
    # How wrong a logit may be, and by that a loss.
    size = 1 + abs(hidden) @ abs(weight).T + (0 if bias is None else abs(bias))
    of_row = size.max(axis=1, initial=1) * (1 + 2 * z * abs(log_sum_exp)) + (1 + z * abs(log_sum_exp)) * abs(
        log_sum_exp
    )
    reduce = {"none": 1.0, "sum": 1.0, "mean": 1 / max(total, 1e-30)}[arguments["reduction"]]
    whole = (lambda x: x) if arguments["reduction"] == "none" else (lambda x: x.sum())
    close(given, whole(loss) * reduce, whole(row_weight * of_row) * reduce, dtype, "loss")
    upstream, of_log_sum_exp = torch.randn(given.shape, generator=draw.generator), draw.normal(len(loss))
    value, slope = (
        (given * upstream).sum(),
        slopes * reduce * (array(upstream)[:, None] if given.dim() else float(upstream)),
    )
    if both:
        close(given_log_sum_exp, log_sum_exp, of_row, dtype, "log-sum-exp")
        value = value + (given_log_sum_exp * of_log_sum_exp).sum()
        slope = slope + shares * array(of_log_sum_exp)[:, None]
    if not value.requires_grad:
        return
    value.backward()
    # A logit wrong by e makes its share wrong by e of the share, and log-sum-exp by as much.
    scales = row_weight * reduce * (abs(array(upstream)) if given.dim() else abs(float(upstream)))
    scales = scales + (abs(array(of_log_sum_exp)) if both else 0)
    errors = scales[:, None] * (shares * of_row[:, None] + (abs(slopes) > 0) * 1e-1) + abs(slope)
    for name, expected, allowed in [
        ("hidden", slope @ weight, errors @ abs(weight)),
        ("weight", slope.T @ hidden, errors.T @ abs(hidden)),
        ("bias", slope.sum(0), errors.sum(0)),
    ]:
        if name in leaves and leaves[name].requires_grad:
            assert leaves[name].grad.dtype == dtype
            close(leaves[name].grad, expected, allowed, dtype, name)
        elif name in leaves:
            assert leaves[name].grad is None
