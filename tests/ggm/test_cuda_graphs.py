"""Sampling by replayed steps gives the samples of sampling step by step.

Without a GPU, the recorder is PyTorch's tracer: like a CUDA graph, what it gives runs the recorded operations on
the recorded buffers, and every number that was Python's at recording stays what it was.
"""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

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


class Recorder:
    """`ggm.sampling.cuda_graphs.record` for the CPU."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, step, tokens):
        before = tokens.clone()
        with torch.no_grad():
            traced = make_fx(step, _error_on_data_dependent_ops=False)()
        tokens.copy_(before)
        self.recordings += 1
        return traced


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(cuda_graphs, "check", lambda tokens: None)
    monkeypatch.setattr(cuda_graphs, "record", recorder)
    return recorder


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_recorded_steps_give_the_same_samples(settings, backbone, recorder):
    assert_same(backbone, SETTINGS[settings], "cpu")
    sizes = 2 if LENGTH % SETTINGS[settings].get("sites_per_step", 1) else 1
    assert recorder.recordings >= sizes
    assert recorder.recordings <= 2 * len(FROZEN), "one recording per group size of a run"


@pytest.mark.parametrize("name", ["coordinate", "steps"])
def test_a_number_that_stays_as_recorded_is_seen(name, recorder, monkeypatch):
    real = cuda_graphs.GraphedSteps._step

    def faulty(self, steps):
        if name == "coordinate":
            self._coordinate = torch.tensor(int(self._coordinate))
        else:
            steps = torch.tensor(steps.tolist())
        real(self, steps)

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
def test_graphs_and_checks_exclude_each_other(monkeypatch):
    monkeypatch.setenv("GGM_KERNELS_CHECK", "1")
    with pytest.raises(ValueError, match="cuda_graph: got GGM_KERNELS_CHECK=1"):
        samples(model_of("masked").to("cuda"), SamplingConfig(cuda_graph=True), "cuda")
