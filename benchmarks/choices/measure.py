"""One run: train for so many seconds of processor time, then the likelihood bound and samples."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import torch

from benchmarks.choices.levers import Row, Setup
from benchmarks.choices.problems import PROBLEMS, Sequences
from ggm import GGM, GGMConfig, train
from ggm.data.unigram import unigram_law
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.likelihood import likelihood

# Looks per held-out sequence: with those of 128 to 360 sequences, errors of a hundredth of a nat.
_TIMES = 16


def measure(row: Row, seconds: float) -> dict[str, Any]:
    """Numbers of a run, on one thread.

    Returns
    -------
    dict
        ``bound`` in nats per token with its ``standard_error``, ``distance`` of the samples (None where there
        are none), training ``steps``, ``parameters``, the machine's ``load`` after it, and ``setup``.
    """
    torch.set_num_threads(1)
    problem, setup = PROBLEMS[row.problem], row.setup()
    data = problem.load()
    training = dataclasses.replace(setup.training, seconds=problem.times_seconds * seconds, seed=row.seed)
    torch.manual_seed(row.seed)
    result = train(GGM(model_config(setup, data)), data.train, training, clock=time.process_time)
    # A masked network has learnt groups of these sizes, and its bound is that of its largest of them.
    sites = min(setup.model.masked_counts) if setup.model.backbone.kind == "masked" else 1
    bound = likelihood(result.model, data.held_out, LikelihoodConfig(times=_TIMES, sites_per_step=sites))
    distance = None
    if problem.samples:
        sampling = dataclasses.replace(
            problem.sampling, sites_per_step=max(problem.sampling.sites_per_step, sites)
        )
        distance = data.distance(result.model.sample(problem.samples, sampling, seed=row.seed).tokens)
    return {
        "bound": bound["nats_per_token"],
        "standard_error": bound["standard_error"],
        "distance": distance,
        "steps": result.steps,
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "load": round(os.getloadavg()[0], 1),
        "setup": described(setup),
    }


def model_config(setup: Setup, data: Sequences) -> GGMConfig:
    """Configuration of the model on its data."""
    config = dataclasses.replace(setup.model, vocab_size=data.vocab_size)
    if not setup.unigram:
        return config
    return dataclasses.replace(config, noise_probs=tuple(unigram_law(data.train, data.vocab_size)))


def described(setup: Setup) -> dict[str, Any]:
    """A setup as plain values: results of another one are measured again."""
    return dataclasses.asdict(setup)
