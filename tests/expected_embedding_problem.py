"""A case of `linear_expected_embedding` for tests, and its formula."""

import torch

OPTIONS = {
    "plain": lambda rows, noise: {},
    "softcap": lambda rows, noise: {"softcap": 2.0, "temperature": 0.7},
    "rows": lambda rows, noise: {"softcap": 3.0, "temperature": 0.3 + torch.rand(rows, generator=noise)},
}


def problem(size, dtype=torch.float32, tied=False):
    rows, vocab_size, width, out = size
    noise = torch.Generator().manual_seed(1)
    shapes = [(rows, width), (vocab_size, width), (vocab_size, out), (vocab_size,)]
    values = [torch.randn(shape, generator=noise).to(dtype).requires_grad_() for shape in shapes]
    return [values[0], values[1], values[1], values[3]] if tied else values


def formula(hidden, weight, embedding, bias, softcap=None, temperature=1.0):
    logits = hidden.double() @ weight.double().T + bias.double()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if isinstance(temperature, torch.Tensor):
        temperature = temperature[:, None]
    return (logits / temperature).softmax(1) @ embedding.double()
