"""Training whose weights, averages and moments are spread over processes (FSDP2).

This is `torch.distributed.fsdp.fully_shard` itself and not accelerate's plugin for it: that one knows no
CPUs, so it could not be tested everywhere, and under bf16 it casts weights where DDP has autocast.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.swa_utils import AveragedModel

from ggm.checkpoints import TrainingState
from ggm.config import ConfigError
from ggm.model import GGM
from ggm.training import TrainingConfig, make_optimizer

# What is called of a model besides its forward, which is its loss.
_METHODS = ("loss", "calibration")


def asked_by_launcher() -> bool:
    """Whether ``accelerate launch --use_fsdp`` asks for it; taken from the environment, once.

    Raises
    ------
    ConfigError
        If it asks for FSDP1.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ConfigError(f"accelerate launch: got --fsdp_version {version}; allowed: --fsdp_version 2")
    # Or accelerate would shard on its own where it can.
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    return True


def shard(state: TrainingState, config: TrainingConfig, device: torch.device) -> None:
    """Spread a state over the processes, each of which holds the same one; in place.

    Parameters
    ----------
    state : TrainingState
        Plain weights and moments. Its optimiser is replaced by another one with the same moments.
    config : TrainingConfig
        Of the optimiser.
    device : torch.device
        Of this process.
    """
    averaged = state.averaged.module
    assert isinstance(averaged, GGM)
    moments = get_optimizer_state_dict(state.model, state.optimizer) if state.optimizer.state else None
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    _shard_model(state.model, mesh)
    # No backward pass shards these weights again: their forward must.
    _shard_model(averaged, mesh, reshard_after_forward=True)
    state.optimizer = make_optimizer(state.model, config)
    if moments is not None:
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(state.model, state.optimizer, moments, options=options)


def _shard_model(model: GGM, mesh: dist.DeviceMesh, **options: bool) -> None:
    """Shard every layer of a list on its own, and the rest, embedding and head among it, as the root."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for layer in (layer for layers in lists for layer in layers):
        dist.fsdp.fully_shard(layer, mesh=mesh)
    dist.fsdp.fully_shard(model, mesh=mesh, **options)
    for name in _METHODS:
        dist.fsdp.register_fsdp_forward_method(model, name)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was here."""
    return isinstance(model, dist.fsdp.FSDPModule)


def gather(state: TrainingState, config: TrainingConfig) -> TrainingState | None:
    """Plain state on the CPU of the first process, None on the others, which must call this, too."""
    averaged = state.averaged.module
    assert isinstance(averaged, GGM)
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, average = (get_model_state_dict(model, options=whole) for model in (state.model, averaged))
    moments = get_optimizer_state_dict(state.model, state.optimizer, options=whole)
    if dist.get_rank() != 0:
        return None
    plain = GGM(state.model.config)
    mean = AveragedModel(plain)
    plain.load_state_dict(weights)
    mean.module.load_state_dict(average)
    optimizer = make_optimizer(plain, config)
    set_optimizer_state_dict(plain, optimizer, moments)
    return TrainingState(plain, mean, optimizer, state.step, state.seconds)


def full(value: torch.Tensor) -> torch.Tensor:
    """A plain tensor from one that may be spread over processes."""
    return value.full_tensor() if isinstance(value, dist.tensor.DTensor) else value
