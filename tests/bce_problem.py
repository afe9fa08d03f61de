"""A small case of `linear_sigmoid_bce` for tests."""

import torch

CANDIDATES = torch.tensor([[0, 3], [3, 3], [6, 1], [2, 5]])


def problem(rows=4, vocab_size=7, hidden_size=5, dtype=torch.float32, candidates=CANDIDATES):
    """All arguments but the backend; hidden states, weight and bias want gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "hidden": draw(rows, hidden_size).requires_grad_(),
        "weight": draw(vocab_size, hidden_size).requires_grad_(),
        "bias": draw(vocab_size).requires_grad_(),
        "offset": draw(rows),
        "candidates": candidates,
        "signal_weight": torch.rand(candidates.shape, generator=generator, dtype=torch.float64),
        "noise_weight": torch.rand(candidates.shape, generator=generator, dtype=torch.float64),
    }
