"""What `ggm demo` does: learn handwritten digits in minutes, sample, infill, measure, draw."""

from __future__ import annotations

import torch

from ggm.backbones.hollow import HollowConfig
from ggm.chain import ChainConfig
from ggm.commands import figures
from ggm.commands.demo_config import HELD_OUT, DemoConfig
from ggm.data.digits import SIDE, Digits, load_digits
from ggm.data.images.tokenizers import GreyLevels
from ggm.data.vocabulary import Vocabulary
from ggm.evaluation import copied_share, frechet_distance, nearest_differences
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.likelihood import likelihood
from ggm.extras import require
from ggm.files import check_writable
from ggm.model import GGM
from ggm.model_config import GGMConfig
from ggm.objective import ObjectiveConfig
from ggm.sampling.config import SamplingConfig
from ggm.training.config import TrainingConfig
from ggm.training.in_memory import train

LEVELS = 4
SAMPLING = SamplingConfig(sites_per_step=4, temperature=0.9)
_STRIP_CHAINS, _STRIP_FRAMES = 4, 12
_INFILLED, _INFILLS_EACH = 12, 3


def model_config() -> GGMConfig:
    """The model of the demo: all values are our own, tuned for three minutes on two cores."""
    return GGMConfig(
        vocab_size=LEVELS,
        chain=ChainConfig(length=SIDE * SIDE, sweeps=4),
        backbone=HollowConfig(
            width=64, depth=3, mixing=1, heads=4, mlp_ratio=2.0, positions="both", grid=(SIDE, SIDE)
        ),
        objective=ObjectiveConfig(form="cross_entropy"),
        masked_counts=(SIDE * SIDE,),  # all positions of every pass teach something
        frozen_share=0.25,
        predicts="data",
        training_times="kept",
    )


def training_config(config: DemoConfig) -> TrainingConfig:
    """How the demo trains."""
    return TrainingConfig(
        seconds=config.seconds,
        batch_size=32,
        learning_rate=4e-3,
        ema_decay=0.99,
        seed=config.seed,
    )


def run(config: DemoConfig) -> None:
    """Run the demo: prints what it does and measures, writes three pictures and the model.

    Parameters
    ----------
    config : DemoConfig
        The user's choices.

    Raises
    ------
    MissingExtraError
        If scikit-learn, matplotlib, safetensors or tqdm is not installed.
    OSError
        If the folder cannot be written to.
    """
    for module in ("sklearn", "matplotlib", "safetensors", "tqdm"):
        require(module, extra="demo")
    for folder in (config.out, config.model):
        check_writable(folder)
    config.out.mkdir(parents=True, exist_ok=True)
    digits = load_digits(LEVELS, HELD_OUT)
    torch.manual_seed(config.seed)
    model = GGM(model_config())
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{len(digits.train)} digits of {SIDE} x {SIDE} pixels in {LEVELS} grey levels; "
        f"{parameters / 1e3:.0f}k parameters; {model.chain.sweeps} sweeps, T = {model.chain.steps}"
    )
    result = train(model, digits.train, training_config(config), progress=True)
    print(f"trained {result.steps} steps in {result.seconds:.0f} s, loss {result.loss:.3f}")
    result.model.vocabulary = Vocabulary(images=GreyLevels(SIDE, LEVELS))
    result.model.save_pretrained(config.model)  # first: it is what took the time
    samples = _sample(result.model, digits, config)
    _infill(result.model, digits, config)
    _report(result.model, samples, digits, config)
    print(f"pictures in {config.out}: samples.png, chain.png, infill.png; for `ggm sample`: {config.model}")


def _sample(model: GGM, digits: Digits, config: DemoConfig) -> torch.Tensor:
    frames: list[tuple[int, torch.Tensor]] = []
    result = model.sample(
        config.samples,
        SAMPLING,
        seed=config.seed,
        progress=True,
        observe=lambda t, tokens: frames.append((t, tokens[:_STRIP_CHAINS].clone())),
    )
    print(
        f"{config.samples} samples, {result.network_evaluations} network evaluations of the batch, "
        f"{SAMPLING.sites_per_step} sites each, temperature {SAMPLING.temperature:g}, {result.seconds:.0f} s"
    )
    figures.real_and_sampled(config.out / "samples.png", digits.held_out, result.tokens, digits.levels)
    shown = torch.linspace(0, len(frames) - 1, _STRIP_FRAMES).round().long().tolist()
    figures.film_strip(config.out / "chain.png", [frames[i] for i in shown], digits.levels)
    return result.tokens


def _infill(model: GGM, digits: Digits, config: DemoConfig) -> None:
    real = digits.held_out[:_INFILLED]
    given = torch.arange(SIDE * SIDE) < SIDE * SIDE // 2
    repeated = real.repeat(_INFILLS_EACH, 1)
    result = model.infill(
        repeated,
        given.expand_as(repeated),
        SAMPLING,
        seed=config.seed,
    )
    filled = result.tokens.view(_INFILLS_EACH, *real.shape)
    figures.infills(config.out / "infill.png", real, given, filled, digits.levels)


def _report(model: GGM, samples: torch.Tensor, digits: Digits, config: DemoConfig) -> None:
    held_out = digits.held_out[: config.samples]
    sampled = frechet_distance(samples, digits.train)
    real = frechet_distance(held_out, digits.train)
    print(f"Frechet distance of pixels to the training set, {config.samples} images each:")
    print(f"  samples          {sampled:6.2f}   ({sampled / real:.1f} times that of real digits)")
    print(f"  held-out digits  {real:6.2f}")
    print(f"copies of a training image: {copied_share(samples, digits.train):.1%} of the samples")
    ours = nearest_differences(samples, digits.train).double().mean()
    theirs = nearest_differences(held_out, digits.train).double().mean()
    print(
        f"pixels that differ from the nearest training image: {ours:.1f} of {SIDE * SIDE} "
        f"(held-out digits {theirs:.1f})"
    )
    bound = likelihood(model, held_out, LikelihoodConfig(times=8, seed=config.seed))
    print(
        f"likelihood bound of held-out digits: {bound['nats_per_token']:.3f} nats per pixel "
        f"(+- {bound['standard_error']:.3f})"
    )
