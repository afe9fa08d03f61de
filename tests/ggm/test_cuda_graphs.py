"""Sampling by replayed steps gives the samples of sampling step by step.

Without a GPU, operations are recorded as PyTorch dispatches them: like a CUDA graph, what the recorder gives runs
them again on the recorded buffers, and every number that was Python's at recording stays what it was.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ggm import (
    GGM,
    ChainConfig,
    DenoiserConfig,
    GGMConfig,
    HollowConfig,
    MaskedConfig,
    Ramp,
    ReDenoise,
    SamplingConfig,
)
from ggm.sampling import cuda_graphs

LENGTH = 10
NOISE = (0.4, 0.3, 0.2, 0.05, 0.05)
BACKBONES = {
    "masked": MaskedConfig(width=16, depth=1, heads=2),
    "hollow": HollowConfig(width=16, depth=1, mixing=1, heads=2, positions="rotary"),
    "denoiser": DenoiserConfig(width=16, depth=1, heads=2),
}
SETTINGS = {
    "one site": {},
    "groups of two sizes": {"sites_per_step": 4},
    "keep or replace": {"sites_per_step": 3, "keep_or_replace": True},
    "filters": {"sites_per_step": 3, "temperature": 0.7, "top_k": 4, "top_p": 0.9, "min_p": 0.01},
    "ReDenoise": {"sites_per_step": 5, "redenoise": ReDenoise(sweeps=1, repeats=2)},
}


def model_of(backbone: str) -> GGM:
    torch.manual_seed(0)
    chain = ChainConfig(LENGTH, sweeps=2, order="reshuffled")
    predicts = "data" if backbone == "denoiser" else "state"
    config = GGMConfig(
        5, chain, BACKBONES[backbone], masked_counts=(2,), noise_probs=NOISE, predicts=predicts
    )
    model = GGM(config)
    for parameter in model.parameters():  # so that contexts, times and positions matter
        torch.nn.init.normal_(parameter, std=0.5)
    return model


# Positions that are given: none, the same in all sequences, others in each.
FROZEN = {
    "none": None,
    "the same": (torch.arange(LENGTH) % 3 == 0).expand(3, -1),
    "by row": torch.arange(LENGTH) % torch.tensor([[2], [3], [4]]) == 0,
}


def samples(
    model: GGM, config: SamplingConfig, device: str = "cpu", frozen: torch.Tensor | None = None
) -> torch.Tensor:
    ids = torch.tensor([5, 0, 9], device=device)
    if frozen is None:
        return model.sample(3, config, seed=3, sample_ids=ids).tokens.cpu()
    tokens = torch.arange(3 * LENGTH, device=device).view(3, LENGTH) % 5
    return model.infill(tokens, frozen.to(device), config, seed=3, sample_ids=ids).tokens.cpu()


def assert_same(backbone: str, settings: dict, device: str) -> None:
    model = model_of(backbone).to(device)
    for frozen in FROZEN.values():
        plain = samples(model, SamplingConfig(**settings), device, frozen)
        replayed = samples(model, SamplingConfig(**settings, cuda_graph=True), device, frozen)
        assert torch.equal(replayed, plain)


class Tape(TorchDispatchMode):
    """The operations that were run under it, to be run again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        made = {}  # by the id of the recorded tensor in whose place it is; the calls keep them all alive

        def now(value):
            return made.get(id(value), value)

        for operation, args, kwargs, result in self.calls:
            again = operation(*tree_map(now, args), **tree_map(now, kwargs))
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor):
                    made[id(old)] = new


class Recorder:
    """`ggm.sampling.cuda_graphs.record` for the CPU."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, step, tokens):
        before = tokens.clone()
        with torch.no_grad(), Tape() as tape:
            step()
        tokens.copy_(before)
        self.recordings += 1
        return tape.replay


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(cuda_graphs, "check", lambda tokens: None)
    monkeypatch.setattr(cuda_graphs, "record", recorder)
    return recorder


@pytest.mark.parametrize(
    ("settings", "backbone"),
    [
        *((settings, backbone) for settings in SETTINGS for backbone in ("masked", "hollow")),
        ("keep or replace", "denoiser"),
    ],
)
def test_recorded_steps_give_the_same_samples(settings, backbone, recorder):
    assert_same(backbone, SETTINGS[settings], "cpu")
    sizes = 2 if LENGTH % SETTINGS[settings].get("sites_per_step", 1) else 1
    assert recorder.recordings >= sizes
    assert recorder.recordings <= 2 * len(FROZEN), "one recording per group size of a run"


@pytest.mark.parametrize("name", ["coordinate", "steps"])
def test_a_number_that_stays_as_recorded_is_seen(name, recorder, monkeypatch):
    real = cuda_graphs.GraphedSteps._step

    def faulty(self, steps):
        buffer = self._coordinate
        if name == "coordinate":
            self._coordinate = torch.tensor(int(buffer))
        else:
            steps = torch.tensor(steps.tolist())
        real(self, steps)
        self._coordinate = buffer

    monkeypatch.setattr(cuda_graphs.GraphedSteps, "_step", faulty)
    with pytest.raises(AssertionError):
        assert_same("masked", {"sites_per_step": 5}, "cpu")


def test_what_no_graph_can_hold_is_refused():
    with pytest.raises(ValueError, match="cuda_graph: got tokens on cpu; allowed: on a CUDA device"):
        samples(model_of("masked"), SamplingConfig(cuda_graph=True))
    with pytest.raises(ValueError, match="cuda_graph: got True with event_driven"):
        SamplingConfig(event_driven=True, cuda_graph=True)
    for name in ("temperature", "top_p"):
        with pytest.raises(ValueError, match=f"{name}: got a Ramp with cuda_graph"):
            SamplingConfig(cuda_graph=True, **{name: Ramp(1.0, 0.5)})


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_cuda_graphs_give_the_same_samples(settings, backbone):
    assert_same(backbone, SETTINGS[settings], "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("settings", ["groups of two sizes", "keep or replace", "filters"])
def test_steps_without_graphs_do_not_wait_for_the_device(monkeypatch, settings, backbone):
    """What a sweep needs is copied at its start, and no more until its end."""
    model = model_of(backbone).to("cuda")
    config = SamplingConfig(**SETTINGS[settings])
    given = model.conditionals

    def conditionals(frozen=None):
        asked = given(frozen)

        def watched(tokens, positions, time, **options):
            ends_sweep = time % LENGTH == 0  # what the next one needs is copied then
            torch.cuda.set_sync_debug_mode("default" if ends_sweep else "error")
            return asked(tokens, positions, time, **options)

        return watched

    plain = samples(model, config, "cuda")  # brings tables to the device
    monkeypatch.setattr(model, "conditionals", conditionals)
    try:
        assert torch.equal(samples(model, config, "cuda"), plain)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_graphs_and_checks_exclude_each_other(monkeypatch):
    monkeypatch.setenv("GGM_KERNELS_CHECK", "1")
    with pytest.raises(ValueError, match="cuda_graph: got GGM_KERNELS_CHECK=1"):
        samples(model_of("masked").to("cuda"), SamplingConfig(cuda_graph=True), "cuda")
