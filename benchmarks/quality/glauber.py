"""The Glauber generative model of `ggm`, in the form that all systems of the bench have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.quality.system import Drawn, Request, Shape
from ggm.backbones import BackboneConfig, DenoiserConfig, HollowConfig, MaskedConfig
from ggm.chain import ChainConfig
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.likelihood import chain_bound
from ggm.model import GGM
from ggm.model_config import GGMConfig
from ggm.objective import ObjectiveConfig
from ggm.sampling.config import ReDenoise, SamplingConfig

Network = Literal["hollow", "masked", "denoiser"]
SWEEPS = 4
CHAIN_FIELDS = {field.name for field in dataclasses.fields(ChainConfig)}
REDENOISE = ReDenoise(sweeps=1, repeats=2)
# Samplers in the order of confidence, and their passes over all sites.
CONFIDENT = {"confidence": 1, "confidence, redenoise": 2}


class Glauber(nn.Module):
    """The system; `samplers` resample several sites per step.

    "heat bath", "keep or replace", and "redenoise": heat bath, then two rounds of one sweep of new noise.
    With networks that predict the data everywhere and have learnt what is given, "confidence": every site
    once, the most confident tokens first; "confidence, redenoise": then a sweep of new noise, and once more.

    Parameters
    ----------
    shape : Shape
        What is modelled.
    network : str
        "hollow" (all conditionals in one pass), "masked", or "denoiser" (sees its own token).
    changes : dict
        Fields of `GGMConfig` that differ from the defaults of the bench, or of its chain.
    """

    samplers: tuple[str, ...] = ("heat bath", "keep or replace", "redenoise")

    def __init__(self, shape: Shape, network: Network, **changes: Any) -> None:
        super().__init__()
        self.shape = shape
        # One site, and numbers that come near 4, 8, 16, .. evaluations. A masked network has to learn each.
        ratio = 4 if network == "masked" else 2
        counts = tuple(sorted({max(1, shape.length // ratio**n) for n in range(16)}, reverse=True))
        chain = {key: changes.pop(key) for key in list(changes) if key in CHAIN_FIELDS}
        values: dict[str, Any] = {
            "vocab_size": shape.vocab_size,
            "chain": ChainConfig(**{"length": shape.length, "sweeps": SWEEPS, **chain}),
            "backbone": NETWORKS[network](shape),
            "objective": ObjectiveConfig("marginal", noise_ratio=max(40.0, float(shape.vocab_size))),
            "masked_counts": counts if network == "masked" else (shape.length,),
            "frozen_share": shape.given_share,
        }
        self.model = GGM(GGMConfig(**{**values, **changes}))
        self.counts = counts
        config = self.model.config
        if config.backbone.gives_all_conditionals and config.predicts == "data" and config.frozen_share > 0:
            self.samplers = (*self.samplers, *CONFIDENT)

    def loss(self, tokens: torch.Tensor, seed: int, step: int, sample_ids: torch.Tensor) -> torch.Tensor:
        """Loss of the model's objective."""
        return self.model.loss(tokens, seed, step, sample_ids)

    def steps_near(self, sampler: str, evaluations: int) -> int | None:
        """Evaluations of the chain, within a factor of 1.5, for the numbers of sites that were trained.

        Confidence order takes any number, and is asked for no more of them than there are positions.
        """
        if sampler in CONFIDENT:
            passes = CONFIDENT[sampler]
            return passes * min(max(1, evaluations // passes), self.shape.length)
        best = self._evaluations(sampler, self._sites(sampler, evaluations))
        return best if max(best, evaluations) <= 1.5 * min(best, evaluations) else None

    def _evaluations(self, sampler: str, sites: int) -> int:
        again = REDENOISE.sweeps * REDENOISE.repeats if sampler == "redenoise" else 0
        return -(-self.shape.length // sites) * (self.model.chain.sweeps + again)

    def _sites(self, sampler: str, evaluations: int) -> int:
        return min(self.counts, key=lambda sites: abs(self._evaluations(sampler, sites) - evaluations))

    def sample(self, request: Request) -> Drawn:
        """Sequences, from noise or around what is given."""
        passes = CONFIDENT.get(request.sampler)
        config = SamplingConfig(
            sites_per_step=1 if passes else self._sites(request.sampler, request.evaluations),
            order="confidence" if passes else "chain",
            evaluations_per_pass=max(1, request.evaluations // passes) if passes else None,
            keep_or_replace=request.sampler == "keep or replace",
            redenoise=_redenoise(request.sampler),
            temperature=request.temperature,
        )
        if request.tokens is None or request.given is None:
            result = self.model.sample(request.count, config, seed=request.seed)
        else:
            result = self.model.infill(request.tokens, request.given, config, seed=request.seed)
        return Drawn(result.tokens, float(result.network_evaluations))

    @torch.inference_mode()
    def bound(self, tokens: torch.Tensor, times: int, seed: int) -> torch.Tensor:
        """The bound of the chain that resamples one site per step."""
        config = LikelihoodConfig(times=times, seed=seed)
        model = self.model
        parts = [
            chain_bound(
                model.conditionals(),
                model.chain,
                tokens[ids],
                config,
                vocab_size=self.shape.vocab_size,
                sample_ids=ids,
            )
            for ids in torch.arange(len(tokens)).split(config.batch)
        ]
        return torch.cat(parts)


def _redenoise(sampler: str) -> ReDenoise | None:
    if sampler == "redenoise":
        return REDENOISE
    return ReDenoise(sweeps=1) if CONFIDENT.get(sampler) == 2 else None


def hollow(shape: Shape) -> HollowConfig:
    """The hollow network of as many blocks, two streams and the mixing layers together."""
    values = dataclasses.asdict(shape.size)
    depth = values.pop("depth")
    per_stream = max(1, (depth - 1) // 2)
    return HollowConfig(**values, depth=per_stream, mixing=max(1, depth - 2 * per_stream))


NETWORKS: dict[str, Callable[[Shape], BackboneConfig]] = {
    "hollow": hollow,
    "masked": lambda shape: MaskedConfig(**dataclasses.asdict(shape.size)),
    "denoiser": lambda shape: DenoiserConfig(**dataclasses.asdict(shape.size)),
}
