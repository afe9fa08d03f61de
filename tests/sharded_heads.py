"""Losses that know of a model's head, in two processes under DDP and FSDP2: gradients are those of one process."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import run_together
from torch import nn

PROCESSES = 2
ROWS, VOCAB_SIZE, WIDTH = 6, 11, 8  # rows of one process
HEADS = ["tied", "free", "bias"]

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


class Model(nn.Module):
    """Embedding, one layer, and a head of which only the loss knows."""

    def __init__(self, head: str, loss: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.head = None if head == "tied" else nn.Parameter(torch.randn(VOCAB_SIZE, WIDTH))
        self.bias = nn.Parameter(torch.randn(VOCAB_SIZE)) if head == "bias" else None
        self.loss = loss

    def head_weight(self) -> torch.Tensor:
        return self.token.weight if self.head is None else self.head

    def forward(self, tokens: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.layer(self.token(tokens)))
        return self.loss(hidden, self.head_weight(), *given, bias=self.bias)


@dataclass(frozen=True)
class Case:
    """A loss and its rows.

    Attributes
    ----------
    loss : callable
        ``loss(hidden, weight, *given, bias=bias)``, a mean.
    batch : callable
        The rows of all processes: tokens, and what else the loss is given.
    """

    loss: Callable[..., torch.Tensor]
    batch: Callable[[], tuple[torch.Tensor, ...]]

    def share_of(self, rank: int) -> list[torch.Tensor]:
        return [part[rank * ROWS : (rank + 1) * ROWS] for part in self.batch()]

    def model_and_gradients(self, head: str) -> tuple[Model, dict[str, torch.Tensor]]:
        """A model, and its gradients in one process."""
        torch.manual_seed(0)
        model = Model(head, self.loss)
        alone = copy.deepcopy(model)
        alone(*self.batch()).backward()
        return model, {name: parameter.grad for name, parameter in alone.named_parameters()}

    def ddp(self, rank: int) -> None:
        for head in HEADS:
            model, expected = self.model_and_gradients(head)
            parallel = nn.parallel.DistributedDataParallel(model)
            parallel(*self.share_of(rank)).backward()
            assert_gradients(parallel, expected)

    def sharded(self, head: str) -> tuple[Model, dict[str, torch.Tensor]]:
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        model, expected = self.model_and_gradients(head)
        mesh = dist.init_device_mesh("cpu", (PROCESSES,))
        fully_shard(model.layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        return model, expected

    def fsdp(self, rank: int) -> None:
        for head in HEADS:
            model, expected = self.sharded(head)
            model(*self.share_of(rank)).backward()
            assert_gradients(model, expected)

    def compiled_fsdp(self, rank: int) -> None:
        model, expected = self.sharded("tied")
        torch.compile(model, backend="aot_eager")(*self.share_of(rank)).backward()
        assert_gradients(model, expected)


def assert_gradients(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    given = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    assert given.keys() == expected.keys()
    for name, gradient in given.items():
        whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        torch.testing.assert_close(
            whole, expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert whole.abs().sum() > 0


def _work(rank: int, folder: Path, jobs: list[Callable[[int], None]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    for job in jobs:
        job(rank)
        Path(folder, f"{job.__name__} {rank}").touch()
    dist.destroy_process_group()


def do(folder: Path, jobs: list[Callable[[int], None]]) -> Callable[[Callable], None]:
    """Do all jobs in processes of one group: starting them takes longer than the jobs do.

    The first job that fails ends them. Returns what asserts that a job is done.
    """
    error = "no error"
    try:
        run_together(_work, PROCESSES, folder, jobs)
    except Exception as raised:
        error = str(raised)

    def check(job: Callable) -> None:
        done = [Path(folder, f"{job.__name__} {rank}").exists() for rank in range(PROCESSES)]
        assert all(done), error

    return check
