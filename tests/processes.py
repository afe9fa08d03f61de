"""Processes forked from one that has torch loaded, of which a new one costs little: `ggm` as torchrun starts it, and others."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Seconds until a process counts as hanging: many times what a busy machine needs.
PATIENCE = 300.0
TRAINS = "trains\n"
_CONTEXT = multiprocessing.get_context("forkserver")
# All that a run imports on its way. Forked processes have it already.
_CONTEXT.set_forkserver_preload(
    [
        "ggm.training.run",
        "ggm.training.sharding",
        "ggm.commands.cli",
        "ggm_kernels.ops",
        "sklearn.datasets",
        "torch._dynamo",
    ]
)


def start(words: list[str], log: Path, count: int = 1, *, told: bool = False) -> list[BaseProcess]:
    """Start ``ggm WORDS`` in `count` processes of one group; what they print goes to `log`.

    With `told` each process prints TRAINS once signals only ask it to end, and which share of weights, averages and moments it holds at the end of a run.
    """
    _start_server()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        _CONTEXT.Process(target=_run, args=(words, log, rank, count, port, told), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def run_together(work: Callable[..., None], count: int, *arguments: Any) -> None:
    """Call ``work(rank, *arguments)`` in `count` processes; raise what the first that fails says."""
    import torch

    _start_server()
    torch.multiprocessing.start_processes(work, arguments, nprocs=count, start_method="forkserver")


def _start_server() -> None:
    """Start what processes are forked from, if it does not run yet."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read when the first process loads torch
    try:
        forkserver.ensure_running()
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


def wait_for(condition: Callable[[], bool], processes: list[BaseProcess], log: Path) -> None:
    """Wait until something has happened, as long as all processes run."""
    last = time.monotonic() + PATIENCE
    while not condition():
        assert all(process.is_alive() for process in processes), log.read_text()
        assert time.monotonic() < last, f"nothing happened for {PATIENCE} seconds: {log.read_text()}"
        time.sleep(0.01)


def finish(processes: list[BaseProcess], log: Path) -> str:
    """Wait until all have ended well; return what they printed."""
    last = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, last - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            process.kill()
    assert not any(codes) and None not in codes, (codes, log.read_text())
    return log.read_text()


def _run(words: list[str], log: Path, rank: int, count: int, port: int, told: bool) -> None:
    from ggm.commands.cli import main

    if told:
        _tell_shares()

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if count > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.exit(main(words))


def _tell_shares() -> None:
    from ggm.training.loop import Loop

    train = Loop.train

    def train_and_tell(loop: Loop, *arguments: Any) -> Any:
        os.write(1, TRAINS.encode())  # in one write: the processes share the log
        result = train(loop, *arguments)
        state = loop.state
        moments = [value for values in state.optimizer.state.values() for value in values.values()]
        parts = (state.model.parameters(), state.averaged.module.parameters(), moments)
        shares = (_share([value for value in part if value.dim()]) for part in parts)
        os.write(1, f"holds {' '.join(map(str, shares))}\n".encode())
        return result

    Loop.train = train_and_tell


def _share(tensors: list[Any]) -> float:
    here = sum((t.to_local() if hasattr(t, "to_local") else t).numel() for t in tensors)
    return here / sum(t.numel() for t in tensors)
