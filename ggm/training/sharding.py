"""Training whose weights, averages and moments are spread over processes (FSDP2).

This is `torch.distributed.fsdp.fully_shard` itself and not accelerate's plugin for it: that one knows no
CPUs, so it could not be tested everywhere, and under bf16 it casts weights where DDP has autocast. The
module is imported by runs that shard only: it loads half of torch.distributed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim.swa_utils import AveragedModel

from ggm.model import GGM
from ggm.training.checkpoints import TrainingState
from ggm.training.config import TrainingConfig
from ggm.training.optimizer import make_optimizer, options_kept

# What is called of a model besides its forward, which is its loss.
_METHODS = ("loss", "calibration", "sample")


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
    moments = get_optimizer_state_dict(state.model, state.optimizer) if state.optimizer.state else None
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    _shard_model(state.model, mesh)
    # No backward pass shards these weights again: their forward must.
    _shard_model(state.average, mesh, reshard_after_forward=True)
    state.optimizer = make_optimizer(state.model, config)
    if moments is not None:
        options = StateDictOptions(full_state_dict=True)
        with options_kept(state.optimizer):
            set_optimizer_state_dict(state.model, state.optimizer, moments, options=options)


def _shard_model(model: GGM, mesh: dist.DeviceMesh, **options: Any) -> None:
    """Shard every layer of a list on its own, and the rest, embedding and head among it, as the root."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for layer in (layer for layers in lists for layer in layers):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, **options)
    for name in _METHODS:
        register_fsdp_forward_method(model, name)


def gather(state: TrainingState, config: TrainingConfig) -> TrainingState | None:
    """Plain state on the CPU of the first process, None on the others, which must call this, too."""
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, average = (get_model_state_dict(model, options=whole) for model in (state.model, state.average))
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
