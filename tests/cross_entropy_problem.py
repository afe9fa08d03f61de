"""A small case of `linear_cross_entropy` for tests."""

import torch

IGNORED = -100
LEAVES = ("hidden", "weight", "bias")


def problem(rows=5, vocab_size=7, hidden_size=4, dtype=torch.float32):
    """All arguments but reduction and backend; hidden states, weight and bias want gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    targets = torch.randint(vocab_size, (rows,), generator=generator)
    targets[1:2] = IGNORED
    return {
        "hidden": draw(rows, hidden_size).requires_grad_(),
        "weight": draw(vocab_size, hidden_size).requires_grad_(),
        "bias": draw(vocab_size).requires_grad_(),
        "targets": targets,
        "row_weight": torch.rand(rows, generator=generator, dtype=torch.float64),
        "logit_shift": draw(rows).detach(),
        "shifted_token": torch.randint(vocab_size, (rows,), generator=generator),
        "softcap": 5.0,
        "z_loss": 0.01,
    }


def leaves_of(inputs):
    return [inputs[name] for name in LEAVES]
