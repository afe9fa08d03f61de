"""`linear_cross_entropy` under DDP and FSDP2: two processes end up with the gradients of one."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import run_together
from torch import nn

from ggm_kernels import linear_cross_entropy

PROCESSES = 2
ROWS, VOCAB_SIZE, WIDTH = 6, 11, 8  # rows of one process
HEADS = ["tied", "free", "bias"]

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


class Model(nn.Module):
    """Embedding, one layer, and a head of which only the loss knows."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.head = None if head == "tied" else nn.Parameter(torch.randn(VOCAB_SIZE, WIDTH))
        self.bias = nn.Parameter(torch.randn(VOCAB_SIZE)) if head == "bias" else None

    def head_weight(self) -> torch.Tensor:
        return self.token.weight if self.head is None else self.head

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.layer(self.token(tokens)))
        return linear_cross_entropy(hidden, self.head_weight(), targets, bias=self.bias, reduction="mean")


def model_of(head: str) -> Model:
    torch.manual_seed(0)
    return Model(head)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of all processes: tokens and targets."""
    generator = torch.Generator().manual_seed(1)
    rows = PROCESSES * ROWS
    return (
        torch.randint(VOCAB_SIZE, (rows,), generator=generator),
        torch.randint(VOCAB_SIZE, (rows,), generator=generator),
    )


def share_of(rank: int) -> list[torch.Tensor]:
    return [part[rank * ROWS : (rank + 1) * ROWS] for part in batch()]


def gradients_of_one_process(model: Model) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model)
    model(*batch()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_gradients(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    given = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    assert given.keys() == expected.keys()
    for name, gradient in given.items():
        whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        torch.testing.assert_close(
            whole, expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert whole.abs().sum() > 0


def ddp(rank: int) -> None:
    for head in HEADS:
        model = model_of(head)
        expected = gradients_of_one_process(model)
        parallel = nn.parallel.DistributedDataParallel(model)
        parallel(*share_of(rank)).backward()
        assert_gradients(parallel, expected)


def sharded(head: str) -> tuple[Model, dict[str, torch.Tensor]]:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model = model_of(head)
    expected = gradients_of_one_process(model)
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    fully_shard(model.layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model, expected


def fsdp(rank: int) -> None:
    for head in HEADS:
        model, expected = sharded(head)
        model(*share_of(rank)).backward()
        assert_gradients(model, expected)


def compiled_fsdp(rank: int) -> None:
    model, expected = sharded("tied")
    torch.compile(model, backend="aot_eager")(*share_of(rank)).backward()
    assert_gradients(model, expected)


def dtensors_outside_forward(rank: int) -> None:
    model, _ = sharded("bias")
    _, targets = share_of(rank)
    hidden = torch.zeros(ROWS, WIDTH)
    message = "weight: got a DTensor; allowed: a plain tensor: call inside the forward of the module"
    with pytest.raises(TypeError, match=message):
        linear_cross_entropy(hidden, model.token.weight, targets)
    weight = model.token.weight.full_tensor()
    with pytest.raises(TypeError, match=re.escape("or give bias.full_tensor()")):
        linear_cross_entropy(hidden, weight, targets, bias=model.bias)


JOBS = [ddp, fsdp, dtensors_outside_forward, compiled_fsdp]


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    for job in JOBS:
        job(rank)
        Path(folder, f"{job.__name__} {rank}").touch()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def assert_done(tmp_path_factory) -> Callable[[Callable], None]:
    """All jobs, run once: starting processes takes longer than the jobs do. The first that fails ends them."""
    folder, error = tmp_path_factory.mktemp("processes"), "no error"
    try:
        run_together(work, PROCESSES, folder)
    except Exception as raised:
        error = str(raised)

    def check(job: Callable) -> None:
        done = [Path(folder, f"{job.__name__} {rank}").exists() for rank in range(PROCESSES)]
        assert all(done), error

    return check


def test_ddp_gradients_are_those_of_one_process_on_the_whole_batch(assert_done):
    assert_done(ddp)


def test_fsdp2_gradients_inside_forward_are_those_of_one_process(assert_done):
    assert_done(fsdp)


def test_a_compiled_fsdp2_model_has_the_same_gradients(assert_done):
    assert_done(compiled_fsdp)


def test_a_dtensor_outside_forward_is_refused_by_name(assert_done):
    assert_done(dtensors_outside_forward)
