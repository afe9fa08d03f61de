"""Sampling whole sequences through `GGM.sample`: its kernel against softmax and multinomial on one network.

On a GPU also its steps recorded as CUDA graphs; each call pays for its own recording, as a user's does.
Weights are random, as large as trained ones: what is drawn is noise, what it costs is not.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.functional import linear

from benchmarks.ceilings import Work, products_of
from benchmarks.recording import Case
from benchmarks.timing import median_seconds
from ggm import GGM, ChainConfig, GGMConfig, MaskedConfig, SamplingConfig
from ggm_kernels import linear_glauber_step


@dataclass(frozen=True)
class Setting:
    """A model and how many sequences are drawn from it at a time."""

    name: str
    batch: int
    length: int
    vocab_size: int
    backbone: MaskedConfig
    sweeps: int = 1

    def model(self, sites: int) -> GGM:
        torch.manual_seed(0)
        model = GGM(
            GGMConfig(
                self.vocab_size,
                ChainConfig(self.length, sweeps=self.sweeps),
                self.backbone,
                masked_counts=(sites,),
            )
        )
        with torch.no_grad():
            model.backbone.head_weight.normal_(std=self.backbone.width**-0.5)
        return model.eval()


# The demo's digits, and a vocabulary of text.
SETTINGS = [
    Setting("digits", 64, 64, 4, MaskedConfig(64, 3, 4, 2.0, "both", (8, 8)), sweeps=2),
    Setting("text", 16, 64, 50257, MaskedConfig(256, 4, 4)),
]
LONG_TEXT = Setting("long text", 16, 1024, 50257, MaskedConfig(768, 12, 12))
SITES = [1, 4, 16]
# A GPU waits for the launches of a small network or batch, and computes with a large one. 64 steps each, but
# for the second: so few that recording them costs more than replaying saves.
GPU_RUNS = [(SETTINGS[1], 1), (SETTINGS[1], 16), (replace(LONG_TEXT, batch=1), 16), (LONG_TEXT, 16)]
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


def runs_of(on_gpu: bool, full: bool) -> list[tuple[Setting, int]]:
    """Settings with their positions per step; `full` adds to them."""
    runs = []
    if not on_gpu or full:
        runs += [(setting, sites) for setting in SETTINGS for sites in SITES]
    if full:
        runs += [(LONG_TEXT, sites) for sites in SITES]
    return list(dict.fromkeys([*runs, *(GPU_RUNS if on_gpu else [])]))


def implementations_of(on_gpu: bool) -> list[str]:
    return ["rival", "ours", *(["graphs"] if on_gpu else [])]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    on_gpu = torch.cuda.is_available()
    if "setting" in metafunc.fixturenames:
        runs = runs_of(on_gpu, metafunc.config.getoption("--bench-full"))
        ids = [f"{setting.name}-B={setting.batch}-K={sites}" for setting, sites in runs]
        metafunc.parametrize(("setting", "sites"), runs, ids=ids)
        metafunc.parametrize("implementation", implementations_of(on_gpu))


class Sampling:
    """One model, and the ways of drawing from it."""

    def __init__(self, setting: Setting, sites: int, device: torch.device) -> None:
        self.setting, self.sites = setting, sites
        self.model = setting.model(sites).to(device, DTYPES[device.type])
        self.evaluations = 0

    def ours(self, cuda_graph: bool = False) -> torch.Tensor:
        config = SamplingConfig(sites_per_step=self.sites, cuda_graph=cuda_graph)
        result = self.model.sample(self.setting.batch, config, seed=1)
        self.evaluations = result.network_evaluations
        return result.tokens

    def graphs(self) -> torch.Tensor:
        return self.ours(cuda_graph=True)

    @torch.inference_mode()
    def rival(self) -> torch.Tensor:
        """The same visits and the same network, drawn from as PyTorch users do."""
        conditionals, chain = self.model.conditionals(), self.model.chain
        setting, device = self.setting, self.model.backbone.head_bias.device
        tokens = torch.randint(setting.vocab_size, (setting.batch, setting.length), device=device)
        self.evaluations = 0
        for first, positions in visits(chain.positions.view(setting.sweeps, -1), self.sites):
            hidden, weight, bias = conditionals(tokens, positions.to(device), first)
            tokens[:, positions] = multinomial(hidden, weight, bias)
            self.evaluations += 1
        return tokens

    @torch.inference_mode()
    def work(self, evaluations: int) -> Work:
        """The network's products once per evaluation, and logits of the positions that are drawn."""
        model, setting = self.model, self.setting
        positions = model.chain.positions[: self.sites].to(model.backbone.head_bias.device)
        tokens = torch.zeros(setting.batch, setting.length, dtype=torch.int64, device=positions.device)
        network = products_of(lambda: model.conditionals()(tokens, positions, 0))
        logits = 2 * setting.batch * self.sites * setting.backbone.width * setting.vocab_size
        return Work(0, evaluations * (network + logits), model.backbone.head_bias.dtype)

    @torch.inference_mode()
    def one_draw(self, name: str) -> Callable[[], object]:
        """What follows one evaluation of the network, alone."""
        setting = self.setting
        positions = self.model.chain.positions[: self.sites].to(self.model.backbone.head_bias.device)
        tokens = torch.zeros(setting.batch, setting.length, dtype=torch.int64, device=positions.device)
        hidden, weight, bias = self.model.conditionals()(tokens, positions, 0)
        if name == "rival":
            return lambda: multinomial(hidden, weight, bias)
        return lambda: linear_glauber_step(tokens, hidden, weight, positions, bias=bias, seed=1, step=0)


def visits(order: torch.Tensor, sites: int) -> list[tuple[int, torch.Tensor]]:
    """Groups of positions from the last visit to the first, each with its first step; order [S, L]."""
    sweeps, length = order.shape
    return [
        (sweep * length + rank, order[sweep, rank : rank + sites])
        for sweep in reversed(range(sweeps))
        for rank in reversed(range(0, length, sites))
    ]


def multinomial(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    probs = linear(hidden, weight, bias).float().softmax(-1)
    return torch.multinomial(probs.flatten(0, 1), 1).view(hidden.shape[:2])


NAMES = {"rival": "multinomial", "ours": "GGM.sample", "graphs": "GGM.sample, CUDA graphs"}


def test_sampling(record, device, setting, sites, implementation):
    sampling = Sampling(setting, sites, device)
    extents = {"B": setting.batch, "L": setting.length, "V": setting.vocab_size, "K": sites}
    role = "rival" if implementation == "rival" else "ours"
    visited = setting.batch * setting.sweeps * setting.length
    evaluations = setting.sweeps * -(-setting.length // sites)
    rival = ("multinomial", sampling.rival)
    case = Case(f"sampling {setting.name}", extents, device, sampling.work(evaluations), rival)
    rates = {"sites": visited, "network evaluations": evaluations}
    call = getattr(sampling, implementation)
    tokens = record(case, NAMES[implementation], call, role, per_second=rates)
    assert sampling.evaluations == evaluations
    assert tokens.shape == (setting.batch, setting.length)
    assert ((tokens >= 0) & (tokens < setting.vocab_size)).all()
    if implementation == "graphs":  # a draw alone is launched, and not replayed
        assert torch.equal(tokens, sampling.ours())
        return
    if record.benchmark.disabled:
        return
    with torch.inference_mode():
        draws = median_seconds(sampling.one_draw(implementation), rounds=20) * evaluations
    notes = record.benchmark.extra_info
    notes["kernel_share"] = round(draws / record.benchmark.stats["median"], 3)
