"""A canvas of DiffusionGemma's size, and steps of diffusers' schedulers or ours on it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

VOCAB_SIZE = 262144
HIDDEN_SIZE = 256
SOFTCAP = 30.0


@dataclass
class Canvas:
    """Tokens of a canvas, what the head is given for them, and the head."""

    tokens: torch.Tensor
    hidden: torch.Tensor
    weight: torch.Tensor

    @property
    def size(self) -> dict[str, int]:
        batch, length = self.tokens.shape
        return {"B": batch, "L": length, "V": VOCAB_SIZE, "d": HIDDEN_SIZE}

    def logits(self) -> torch.Tensor:
        """What the model's forward makes: the head, float32, the soft cap."""
        logits = linear(self.hidden, self.weight).float()
        return torch.tanh(logits / SOFTCAP) * SOFTCAP


def make_canvas(size: tuple[int, int], device: torch.device) -> Canvas:
    """Random tokens, hidden states and head; logits far enough from flat for a bound to accept some."""
    generator = torch.Generator(device).manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, device=device, generator=generator)  # noqa: E731
    tokens = torch.randint(VOCAB_SIZE, size, device=device, generator=generator)
    return Canvas(tokens, draw(*size, HIDDEN_SIZE), draw(VOCAB_SIZE, HIDDEN_SIZE) / 4)


def scheduler_step(module, name: str) -> Callable:
    """A call of a scheduler of `module`, theirs or ours, at a temperature above 0."""
    if name == "step_correct":
        return module.DiscreteDDIMScheduler(corrector_k=8).step_correct
    scheduler = getattr(module, name)()
    if name == "EntropyBoundScheduler":
        return scheduler.step
    return lambda *arguments, **options: scheduler.step(*arguments, temperature=0.8, **options)


def hidden_step(module, canvas: Canvas) -> Callable[[], torch.Tensor]:
    """Our entropy-bound step, from hidden states."""
    call = scheduler_step(module, "EntropyBoundScheduler")
    factors = {"hidden": canvas.hidden, "lm_head": canvas.weight, "softcap": SOFTCAP}
    return lambda: call(None, 3, canvas.tokens, **factors).prev_sample
