"""A whole training step, backbone and optimiser included: our head against heads over the whole vocabulary.

Every head predicts the same masked positions from the same hidden states. The embedding is tied to the head,
so its gradient is dense in any case, and Adam touches all of its V rows, whatever the head costs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from benchmarks import rivals
from benchmarks.ceilings import Work, products_of
from benchmarks.recording import Case, Recorder, note_case, note_share
from benchmarks.timing import median_seconds, peak_extra_bytes, times_faster
from ggm.backbones.masked import MaskedConfig, MaskedTransformer
from ggm_kernels import linear_cross_entropy, linear_sigmoid_bce

SHARED = 4096  # noise tokens that all rows have in common
# Mean loss of a head from hidden states [N, d].
HeadLoss = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Size:
    """Sequences B, positions L, of which K are predicted, vocabulary V, and the transformer.

    With `autocast` forward runs in bfloat16, and the parameters stay float32.
    """

    batch: int = 4
    length: int = 256
    predicted: int = 128
    vocab_size: int = 50257
    width: int = 256
    depth: int = 4
    heads: int = 4
    autocast: bool = False

    def __str__(self) -> str:
        size = f"B={self.batch}-L={self.length}-K={self.predicted}-V={self.vocab_size}-d={self.width}"
        return f"{size}-bfloat16" if self.autocast else size


SIZES = [Size()]
FULL_SIZES = [*SIZES, Size(predicted=1), Size(batch=32), Size(width=768, depth=12, heads=12)]
# The blocks, width and vocabulary of the smallest GPT-2, as that is trained on a GPU. All logits of the 8192
# predicted rows, kept and differentiated in float32, take several GB: so much that a full head is felt, and
# not so much that it does not run.
GPU_SIZES = [Size(16, 1024, 512, width=768, depth=12, heads=12, autocast=True)]


def sizes_of(on_gpu: bool, full: bool) -> list[Size]:
    """Sizes by device; `full` adds to them."""
    few = GPU_SIZES if on_gpu else SIZES
    return list(dict.fromkeys([*few, *FULL_SIZES])) if full else few


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        sizes = sizes_of(torch.cuda.is_available(), metafunc.config.getoption("--bench-full"))
        metafunc.parametrize("size", sizes, ids=str)


class Training:
    """A model, its optimiser and one batch of random tokens."""

    def __init__(self, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        config = MaskedConfig(width=size.width, depth=size.depth, heads=size.heads, tied=True)
        with device:
            self.model = MaskedTransformer(config, size.vocab_size, size.length)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=size.autocast)
        self.dtype = torch.bfloat16 if size.autocast else torch.float32
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.tokens = torch.randint(size.vocab_size, (size.batch, size.length), device=device)
        by_sequence = torch.rand(size.batch, size.length, device=device).argsort(1)
        self.positions = by_sequence[:, : size.predicted].contiguous()
        self.time = torch.rand(size.batch, device=device)
        self.keep_prob = torch.full((size.batch, size.length), 0.5, device=device)
        self.data = self.tokens.gather(1, self.positions).flatten()
        noise = torch.randint(size.vocab_size, self.data.shape, device=device)
        self.candidates = torch.stack([self.data, noise], dim=1)
        self.shared = torch.randint(size.vocab_size, (SHARED,), device=device)
        self.is_data = torch.tensor([[1.0, 0.0]], device=device)
        # Log-odds of data against one uniform noise token: g + log V.
        self.offset = torch.full(self.data.shape, math.log(size.vocab_size), device=device)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def hidden(self) -> torch.Tensor:
        return self.model(self.tokens, self.positions, self.time, self.keep_prob).flatten(0, 1)

    def sigmoid_bce(self, hidden: torch.Tensor) -> torch.Tensor:
        """Each row's data token against one noise token."""
        weight, bias = self.model.head_weight, self.model.head_bias
        candidates, is_data = self.candidates, self.is_data
        return linear_sigmoid_bce(hidden, weight, candidates, is_data, bias=bias, offset=self.offset).mean()

    def shared_sigmoid_bce(self, hidden: torch.Tensor) -> torch.Tensor:
        """Each row's data token against the noise tokens that all rows share, the mean of SHARED."""
        weight, bias = self.model.head_weight, self.model.head_bias
        return linear_sigmoid_bce(
            hidden, weight, self.data, 1.0, bias=bias, offset=self.offset,
            shared_candidates=self.shared, shared_weight=1 / SHARED,
        ).mean()  # fmt: skip

    def full_cross_entropy(self, hidden: torch.Tensor) -> torch.Tensor:
        return cross_entropy(linear(hidden, self.model.head_weight, self.model.head_bias), self.data)

    def linear_cross_entropy(self, hidden: torch.Tensor) -> torch.Tensor:
        weight, bias = self.model.head_weight, self.model.head_bias
        return linear_cross_entropy(hidden, weight, self.data, bias=bias, reduction="mean")

    def cross_entropy_by(self, summed: rivals.CrossEntropy) -> HeadLoss:
        """By a rival, without the bias: not all of them take one. Nor do all cast what autocast would."""

        def loss(hidden: torch.Tensor) -> torch.Tensor:
            weight = self.model.head_weight.to(self.dtype)
            return summed(hidden.to(self.dtype), weight, self.data) / len(self.data)

        return loss

    def loss_by(self, loss: HeadLoss) -> torch.Tensor:
        with self.autocast:
            return loss(self.hidden())

    def work(self) -> Work:
        """The network's products and two dot products per row, forward and backward; Adam's seven passes.

        Adam reads a parameter, its gradient and two averages, and writes all but the gradient.
        """
        rows, count = self.candidates.shape
        with torch.no_grad(), self.autocast:
            network = products_of(self.hidden)
        dots = 2 * rows * count * self.model.head_weight.shape[1]
        return Work(7 * 4 * self.parameters, 3 * (network + dots), self.dtype)

    def step(self, loss: HeadLoss) -> torch.Tensor:
        """The loss before one step of training; then the gradients go."""
        value = self.loss_by(loss)
        value.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return value.detach()

    def head_alone(self, loss: HeadLoss) -> Callable[[], None]:
        """Forward and backward of the head, for hidden states that are there."""
        with self.autocast:
            hidden = self.hidden().detach().requires_grad_()

        def run() -> None:
            with self.autocast:
                value = loss(hidden)
            value.backward()
            hidden.grad = None
            self.optimiser.zero_grad()

        return run

    def adam_of_embedding(self) -> Callable[[], object]:
        """Adam on a parameter of the embedding's shape alone."""
        weight = torch.zeros_like(self.model.head_weight, requires_grad=True)
        weight.grad = torch.ones_like(weight)
        return torch.optim.Adam([weight], lr=1e-3).step


@pytest.fixture
def training(size: Size, device: torch.device) -> Training:
    return Training(size, device)


def case_of(size: Size, device: torch.device) -> Case:
    extents = {"B": size.batch, "L": size.length, "K": size.predicted, "V": size.vocab_size}
    extents |= {"d": size.width, "layers": size.depth}
    return Case("training step bfloat16" if size.autocast else "training step", extents, device)


def time_steps(
    record: Recorder, training: Training, loss: HeadLoss, size: Size, name: str, role: str = "rival"
) -> None:
    """Train on one batch: the loss must fall. Note where the time of a step goes, and its memory."""
    benchmark = record.benchmark
    note_case(benchmark, case_of(size, training.tokens.device), name, role)

    def step() -> float:
        return training.step(loss).item()  # waits for the device

    losses = [step() for _ in range(2)]
    notes = benchmark.extra_info
    notes["peak_extra_MB"] = round(peak_extra_bytes(step) / 1e6, 1)
    losses.append(benchmark.pedantic(step, rounds=3))
    assert all(map(math.isfinite, losses)) and losses == sorted(losses, reverse=True)
    if benchmark.disabled:
        return
    whole = benchmark.stats["median"]
    note_share(benchmark, record.ceilings, training.work(), whole)
    notes["tokens/s"] = round(training.tokens.numel() / whole)
    notes["parameters"] = training.parameters
    notes["head_share"] = round(median_seconds(training.head_alone(loss), rounds=3) / whole, 3)
    adam = median_seconds(training.adam_of_embedding(), rounds=3)
    notes["adam_of_embedding_share"] = round(adam / whole, 3)
    if role == "ours":
        rival = training.full_cross_entropy
        ratio = times_faster(lambda: training.step(rival), lambda: training.step(loss), seconds=2)
        notes["times_faster_than_full cross-entropy"] = round(ratio, 2)


def test_ggm_kernels(record, training, size):
    time_steps(record, training, training.sigmoid_bce, size, "ggm_kernels", "ours")


def test_shared_candidates(record, training, size):
    time_steps(record, training, training.shared_sigmoid_bce, size, f"ggm_kernels, S={SHARED} shared", "ours")


def test_linear_cross_entropy(record, training, size):
    time_steps(record, training, training.linear_cross_entropy, size, "ggm_kernels, cross-entropy", "ours")


def test_full_cross_entropy(record, training, size):
    time_steps(record, training, training.full_cross_entropy, size, "full cross-entropy")


@pytest.mark.parametrize("find", rivals.CROSS_ENTROPIES)
def test_rivals(record, training, size, find):
    summed = find(training.dtype)
    time_steps(record, training, training.cross_entropy_by(summed), size, find.__name__.replace("_", " "))


def test_torch_compile(record, training, size):
    def loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return cross_entropy(linear(hidden, weight, bias), training.data)

    weight, bias = training.model.head_weight, training.model.head_bias
    fused = rivals.compiled(
        loss,
        "full cross-entropy",
        lambda call: training.loss_by(lambda hidden: call(hidden, weight, bias)).backward(),
    )
    training.optimiser.zero_grad()
    fused_loss = lambda hidden: fused(hidden, weight, bias)  # noqa: E731
    time_steps(record, training, fused_loss, size, "cross-entropy, torch.compile")
