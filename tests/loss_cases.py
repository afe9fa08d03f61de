"""The losses with options in random combinations, held against the float64 truth of truth.py: `check_loss` runs one."""

import numpy as np
import torch
import truth
from random_cases import DTYPES, SMALL, Draw

EPSILON = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def draw_loss(draw):
    rows, count, vocab_size = draw.randint(0, 5), draw.choice([0, 1, 1, 2, 3, 17, 40]), draw.choice(SMALL)
    dtype = draw.choice(DTYPES)
    candidates = draw.integers(vocab_size, rows, count).to(draw.choice([torch.int32, torch.int64]))
    shapes = [(rows, count), (rows, 1), (1, count), (1, 1)]

    def weights():
        value = draw.uniform_tensor(*draw.choice(shapes)) * 3
        value = torch.where(draw.uniform_tensor(*value.shape) < 0.3, value.round(), value)
        return draw.choice([draw.layout(value), draw.uniform(0, 2), 0.0, 1.0])

    arguments = {
        "candidates": draw.layout(candidates),
        "signal_weight": weights(),
        "noise_weight": draw.maybe(0.7, weights),
        "offset": draw.maybe(0.5, lambda: draw.normal(rows).to(draw.choice(DTYPES))),
    }
    if count == 1 and draw.random() < 0.5:
        arguments["candidates"] = arguments["candidates"][:, 0]
    if draw.random() < 0.5:
        size = draw.choice([0, 1, 3, 40, 260])
        shapes = [(size,), (rows, 1), (1,), *([(rows,)] if rows != size else [])]
        weight = draw.uniform_tensor(*draw.choice(shapes)) * 2
        arguments["shared_candidates"] = draw.layout(draw.integers(vocab_size, size))
        arguments["shared_weight"] = draw.choice([draw.layout(weight), draw.uniform(0, 2), 0.0])
    return arguments, rows, count, vocab_size, dtype


def array(value, shape):
    return np.broadcast_to(value.double().numpy() if isinstance(value, torch.Tensor) else value, shape)


def shared_weights(arguments, rows, count):
    """Weights [N, S] of the shared candidates; a tensor [N] is one per row."""
    value = arguments["shared_weight"]
    if isinstance(value, torch.Tensor) and value.shape == (rows,) and rows != count:
        value = value[:, None]
    return array(value, (rows, count))


def close(given, expected, scale, dtype, name, backend):
    """Within float32 sums of terms of size `scale`, and one rounding to dtype."""
    # Triton's interpreter cuts bfloat16 where a GPU rounds: twice the error.
    rounding = EPSILON[dtype] * (2 if backend == "triton" and dtype == torch.bfloat16 else 1)
    error = abs(given.detach().to_dense().double().numpy() - expected)
    allowed = 3e-6 * (1 + scale) + 1.01 * rounding * abs(expected) + (6e-8 if dtype == torch.float16 else 0)
    assert (error <= allowed).all(), (
        name,
        error.max(),
        expected[np.unravel_index(error.argmax(), error.shape)],
    )


def check_loss(call, backend, number):
    draw = Draw(number)
    arguments, rows, count, vocab_size, dtype = draw_loss(draw)
    chosen = arguments["candidates"].reshape(rows, count).long().numpy()
    signal = array(arguments["signal_weight"], (rows, count))
    noise = (
        1 - signal if arguments["noise_weight"] is None else array(arguments["noise_weight"], (rows, count))
    )
    if "shared_candidates" in arguments:  # by their mathematics, candidates of every row that are noise alone
        shared = arguments["shared_candidates"].numpy()
        more = shared_weights(arguments, rows, len(shared))
        chosen, count = truth.with_shared(chosen, shared), count + len(shared)
        signal, noise = np.hstack([signal, np.zeros_like(more)]), np.hstack([noise, more])
    scale = draw.choice([0.3, 2.0, 20.0])
    if call.__name__ == "sigmoid_bce":  # any other call gets factors
        leaves = {"logits": (draw.normal(rows, vocab_size) * scale).to(dtype)}
        f = np.take_along_axis(leaves["logits"].double().numpy(), chosen, 1)
    else:
        size = draw.choice([1, 3, 16, 33])
        leaves = {
            "hidden": draw.normal(rows, size).to(dtype),
            "weight": (draw.normal(vocab_size, size) * scale).to(dtype),
        }
        if draw.random() < 0.5:
            leaves["bias"] = draw.normal(vocab_size).to(dtype)
        arguments["sparse_grad"] = draw.random() < 0.3
        hidden, weight = (leaves[name].double().numpy() for name in ("hidden", "weight"))
        f = np.einsum("nd,ncd->nc", hidden, weight[chosen])
        f = f + (leaves["bias"].double().numpy()[chosen] if "bias" in leaves else 0)
    if arguments["offset"] is not None:
        f = f + arguments["offset"].double().numpy()[:, None]
    terms, slopes = truth.losses(f, signal, noise)
    upstream = draw.normal(rows)
    slopes = slopes * upstream.double().numpy()[:, None]

    leaves = {name: draw.layout(value).requires_grad_() for name, value in leaves.items()}
    loss = call(**leaves, **arguments, backend=backend)
    size_f = 1 + abs(f).max(initial=0)
    assert loss.dtype == torch.float32
    close(loss, terms.sum(1), size_f * (signal + noise).sum(1), torch.float32, "loss", backend)
    loss.backward(upstream)
    weighted = abs(upstream.double().numpy())[:, None] * (abs(signal) + abs(noise)) * size_f
    if call.__name__ == "sigmoid_bce":
        expected, sizes = (np.zeros((rows, vocab_size)) for _ in range(2))
        at = np.arange(rows)[:, None], chosen
        np.add.at(expected, at, slopes)
        np.add.at(sizes, at, weighted)
        return close(leaves["logits"].grad, expected, sizes, dtype, "logits", backend)
    one_hot = np.zeros((rows, count, vocab_size))
    np.put_along_axis(one_hot, chosen[..., None], 1, 2)
    close(leaves["hidden"].grad, np.einsum("nc,ncd->nd", slopes, weight[chosen]),
          np.einsum("nc,ncd->nd", weighted, abs(weight[chosen])), dtype, "hidden", backend)  # fmt: skip
    close(leaves["weight"].grad, np.einsum("nc,ncv,nd->vd", slopes, one_hot, hidden),
          np.einsum("nc,ncv,nd->vd", weighted, one_hot, abs(hidden)), dtype, "weight", backend)  # fmt: skip
    if "bias" in leaves:
        close(leaves["bias"].grad, np.einsum("nc,ncv->v", slopes, one_hot),
              np.einsum("nc,ncv->v", weighted, one_hot), dtype, "bias", backend)  # fmt: skip
