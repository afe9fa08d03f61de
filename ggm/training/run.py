"""`ggm train`: a run described by a YAML file, on one process or many, that can be stopped and resumed."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ggm.backbones.attention import check_installed
from ggm.config import ConfigError
from ggm.data.batches import check_batch
from ggm.data.images import tokenizers as image_tokenizers
from ggm.data.sources import Data, load_data, source_files
from ggm.data.text import read_tokenizer
from ggm.data.unigram import unigram_law
from ggm.digests import DIGESTS, Files, FileState
from ggm.extras import require
from ggm.files import write_text, writing
from ggm.model import GGM
from ggm.model_config import GGMConfig
from ggm.progress import say
from ggm.training.average import start_average
from ggm.training.checkpoints import (
    TOKENIZER,
    Checkpoints,
    TrainingState,
    check_files,
    read_config,
    restore,
)
from ggm.training.config import RUN_CONFIG, RunConfig, check_same_curve, write_config
from ggm.training.lock import locked
from ggm.training.loop import Loop
from ggm.training.metrics import Metrics
from ggm.training.optimizer import make_optimizer
from ggm.training.signals import signals


@dataclass(frozen=True)
class RunResult:
    """What a run gives.

    Attributes
    ----------
    steps : int
        Steps made in all.
    checkpoint : Path
        The last checkpoint.
    stopped_by : str or None
        Name of the signal that ended it.
    is_main_process : bool
        Whether this process is the one to tell of it.
    """

    steps: int
    checkpoint: Path
    stopped_by: str | None
    is_main_process: bool


def run(
    config: RunConfig, *, resume: bool = False, max_steps: int | None = None, progress: bool = True
) -> RunResult:
    """Train as configured.

    Parameters
    ----------
    config : RunConfig
        The run.
    resume : bool
        Whether to go on from the last checkpoint, if there is one.
    max_steps : int, optional
        Stop after so many steps in all; learning rates are those of the whole run.
    progress : bool
        Whether the main process shows a bar.

    Returns
    -------
    RunResult
        Where the checkpoint is.

    Raises
    ------
    FloatingPointError
        If the loss is not finite: tells the step and the sample ids. Nothing is saved.
    ValueError, OSError
        If the configuration does not fit the data, the processes or the checkpoint, or a file
        cannot be read or written.

    Notes
    -----
    Order of the data, chain times and noise are functions of seed, sample id and step: the loss
    curve does not depend on the number of processes nor on `accumulation` but by rounding.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps: got {max_steps}; allowed: 1 or more")
    check_packages(config)
    if _launched_sharded():
        config = dataclasses.replace(config, sharding="fsdp2")
    accelerator = _accelerator(config)
    with _alone(accelerator, Path(config.out)):
        return _train(config, accelerator, resume=resume, max_steps=max_steps, progress=progress)


def _train(
    config: RunConfig, accelerator: Any, *, resume: bool, max_steps: int | None, progress: bool
) -> RunResult:
    """Train in a folder that this run holds."""
    out = Path(config.out)
    checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints)
    last = checkpoints.latest()
    if last is not None and not resume:
        raise ValueError(
            f"{out}: holds checkpoints of a run; `resume` continues it, `out:` names another folder"
        )
    before = None
    if last is not None:
        before = check_same_curve(config, out / RUN_CONFIG)
        _on_main(accelerator, lambda: _check_files(last))
    known = before or config
    # Files that changed need not be such that can be read: they are looked at before.
    files = source_files(config.data)
    _on_main(accelerator, lambda: _check_data(known, files, out))
    data = _load_data(config, accelerator, last, progress=progress)
    if files is None and data.file is not None:
        files = Files.single(data.file)
        _on_main(accelerator, lambda: _check_data(known, files, out))
    sharded = config.sharding == "fsdp2" and accelerator.num_processes > 1
    # What is to be sharded need not fit onto the device as a whole.
    first_device = torch.device("cpu") if sharded else accelerator.device
    state = _new_state(config, configured_model(config, data, last), first_device)
    if last is not None:
        restore(state, last)
    if sharded:
        from ggm.training.sharding import shard

        shard(state, config.training, accelerator.device)
    with _tracking(config, last):
        _start_tracker(config, accelerator)
    with signals() as received:
        metrics = None
        if accelerator.is_main_process:
            metrics = Metrics(out / "metrics.jsonl", state.step)
            write_config(dataclasses.replace(config, data_file=_state_of(files, known)), out / RUN_CONFIG)
        loop = Loop(config, accelerator, state, data, checkpoints, metrics, sharded)
        with metrics or nullcontext(), _told_once():
            stopped_by = loop.train(received, max_steps, progress and accelerator.is_main_process)
    final = checkpoints.latest()
    assert final is not None
    with _tracking(config, final):
        accelerator.end_training()
    return RunResult(state.step, final, stopped_by, accelerator.is_main_process)


@contextmanager
def _alone(accelerator: Any, out: Path) -> Iterator[None]:
    """Hold the folder of a run, in its main process."""
    with ExitStack() as held:
        _on_main(accelerator, lambda: held.enter_context(locked(out)))
        yield


def _on_main(accelerator: Any, work: Callable[[], Any]) -> None:
    """Do something in the main process; all raise what it raises there, OSError or ValueError."""
    failure: list[Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            work()
        except (OSError, ValueError) as error:
            failure = [error]
    require("accelerate.utils", extra="train").broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]


@contextmanager
def _tracking(config: RunConfig, last: Path | None) -> Iterator[None]:
    """Tell of a tracker's files that cannot be written, and of the last checkpoint."""
    try:
        with _told_once(), writing(Path(config.out, config.tracker)):
            yield
    except OSError as error:
        raise OSError(f"{error}; last checkpoint: {last or 'none'}") from error


@contextmanager
def _told_once() -> Iterator[None]:
    """Let threads of TensorBoard fail silently: their errors are raised by the next call, too."""
    usual = threading.excepthook

    def tell(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard."):
            usual(failure)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = usual


def _launched_sharded() -> bool:
    """Whether ``accelerate launch --use_fsdp`` asks for shards; the environment then asks no longer."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ConfigError(f"accelerate launch: got --fsdp_version {version}; allowed: --fsdp_version 2")
    # Or accelerate would shard, too, where it can.
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    return True


def _accelerator(config: RunConfig) -> Any:
    accelerate = require("accelerate", extra="train")
    tracker = None if config.tracker == "none" else config.tracker
    if tracker == "tensorboard" and not accelerate.utils.is_tensorboard_available():
        tracker = None
    accelerator = accelerate.Accelerator(
        cpu=not torch.cuda.is_available(),  # several processes on CPUs are not several runs
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        gradient_accumulation_steps=config.accumulation,
        log_with=tracker,
        project_dir=config.out,
    )
    kinds = accelerate.DistributedType
    if accelerator.distributed_type not in (kinds.NO, kinds.MULTI_GPU, kinds.MULTI_CPU):
        raise ValueError(
            f"got {accelerator.distributed_type.value} from accelerate; allowed: one process, DDP or FSDP2"
        )
    check_processes(config, accelerator.num_processes)
    return accelerator


def check_packages(config: RunConfig) -> None:
    """Raise MissingExtraError if attention or tracker of a run is not installed."""
    check_installed(config.model.backbone.attention)
    if config.tracker == "wandb":
        require("wandb", extra="wandb")


def check_processes(config: RunConfig, processes: int) -> None:
    """Raise ConfigError if so many processes cannot share the batches of a run, or its budget."""
    parts = processes * config.accumulation
    if config.training.batch_size % parts:
        raise ConfigError(
            f"training.batch_size: got {config.training.batch_size}; "
            f"allowed: multiples of processes x accumulation = {parts}"
        )
    if processes > 1 and math.isfinite(config.training.seconds):
        # Clocks of processes differ, and with them their learning rates.
        raise ConfigError(
            "training.seconds: got a value with several processes; allowed: training.steps alone"
        )


def _start_tracker(config: RunConfig, accelerator: Any) -> None:
    """Begin with the tracker's files: once it is known that the run can start, so that none are left else."""
    if config.tracker != "wandb":
        accelerator.init_trackers("tensorboard")
        return
    wandb = require("wandb", extra="wandb")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    places = {"wandb": {"dir": str(out), "name": out.name}}
    try:
        accelerator.init_trackers("ggm", config=dataclasses.asdict(config), init_kwargs=places)
    except wandb.errors.Error as error:
        raise ValueError(
            f"tracker: wandb: {error} (WANDB_MODE=offline needs no account and no network)"
        ) from error


def _check_files(checkpoint: Path) -> None:
    """Check all files of a checkpoint; of one that has no digests, tell so."""
    if not check_files(checkpoint):
        say(f"ggm: {checkpoint}: its files are not checked, it holds no {DIGESTS}", sys.stderr)


def _check_data(known: RunConfig, files: Files | None, out: Path) -> None:
    """Check that the data are those that a run, or its configuration, knows."""
    if known.data_file is not None and files is not None:
        known.data_file.check(files, out / RUN_CONFIG)


def _state_of(files: Files | None, known: RunConfig) -> FileState | None:
    """State of files of data that were checked."""
    return known.data_file if files is None or known.data_file is not None else FileState.of(files)


def _load_data(config: RunConfig, accelerator: Any, last: Path | None, *, progress: bool) -> Data:
    """Load data; all processes, and all continuations, use the vocabulary that the first one made."""
    out = Path(config.out)
    kept = out / TOKENIZER
    with accelerator.main_process_first():
        if last is None and accelerator.is_main_process:
            kept.unlink(missing_ok=True)
            image_tokenizers.remove_tokenizer(out)
        # The files of a checkpoint are checked.
        made = last or out
        tokenizer = read_tokenizer(made / TOKENIZER) if (made / TOKENIZER).is_file() else None
        images = image_tokenizers.read_tokenizer(made)
        data = load_data(
            config.data,
            config.model.chain.length,
            tokenizer,
            images,
            device=accelerator.device,
            progress=progress and accelerator.is_main_process,
        )
        check_fit(config, data)  # before anything is written
        if data.tokenizer is not None and tokenizer is None:
            write_text(kept, data.tokenizer.to_str())
        if data.images is not None and images is None:
            data.images.save(out)
    return data


def check_fit(config: RunConfig, data: Data) -> None:
    """Raise ConfigError if data are too few for a batch, or of other tokens than the law of the noise."""
    check_batch(data.train, config.training.batch_size)
    try:
        dataclasses.replace(config.model, vocab_size=data.vocab_size).check_noise()
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error


def configured_model(config: RunConfig, data: Data, last: Path | None = None) -> GGMConfig:
    """The model as configured, with what the data decide; a resumed run keeps the law of its noise."""
    law = config.model.noise_probs
    if config.noise == "unigram":
        law = read_config(last).noise_probs if last is not None else None
        law = law or unigram_law(data.train, data.vocab_size)
    return dataclasses.replace(config.model, vocab_size=data.vocab_size, noise_probs=law)


def _new_state(config: RunConfig, model_config: GGMConfig, device: torch.device) -> TrainingState:
    torch.manual_seed(config.training.seed)
    model = GGM(model_config).to(device)
    averaged = start_average(model, config.training.ema_decay)
    return TrainingState(model, averaged, make_optimizer(model, config.training))
