"""Attention by flash-attn, for which a function with its demands on dtypes and the maths of PyTorch stands in."""

import sys
from types import ModuleType

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ggm import GGM, ChainConfig, GGMConfig, HollowConfig, MaskedConfig
from ggm.backbones.attention import attend
from ggm.commands.cli import main
from ggm.extras import MissingExtraError

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

RUN = """\
data: {kind: digits, held_out: 16}
model:
  chain: {length: 64, sweeps: 1}
  backbone: {width: 16, depth: 1, heads: 2, attention: flash}
  masked_counts: [16]
training: {steps: 2, batch_size: 4}
tracker: none
"""


@pytest.fixture
def dtypes(monkeypatch) -> set[torch.dtype]:
    """Dtypes that flash-attn was called with."""
    seen: set[torch.dtype] = set()
    package = ModuleType("flash_attn")
    package.flash_attn_func = stand_in(seen)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    return seen


@pytest.fixture
def dtypes_of_4(monkeypatch) -> set[torch.dtype]:
    """The same of flash-attn-4: a folder without a module of its own, and a second result."""
    seen: set[torch.dtype] = set()
    attention = stand_in(seen)

    def flash_attn_func(query, *others, causal=False):
        mixed = attention(query, *others, causal=causal)
        return mixed, mixed.new_zeros(())

    package, cute = ModuleType("flash_attn"), ModuleType("flash_attn.cute")
    cute.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    return seen


def stand_in(seen: set[torch.dtype]):
    """A function with the demands of the packages, that notes dtypes."""

    def flash_attn_func(query, key, value, causal=False):
        if not query.dtype == key.dtype == value.dtype:
            raise RuntimeError("query and key must have the same dtype")
        if query.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        seen.add(query.dtype)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(1, 2)

    return flash_attn_func


def backbone(kind, **options):
    make = {"masked": MaskedConfig, "hollow": HollowConfig}[kind]
    return make(width=16, depth=1, heads=2, **options)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("kind", ["masked", "hollow"])
def test_runs_train_and_sample(kind, positions, precision, dtypes, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(f"out: {tmp_path / 'run'}\nprecision: {precision}\n{RUN}")
    words = ["--set", f"model.backbone.kind={kind}", "--set", f"model.backbone.positions={positions}"]
    assert main(["train", str(config), "--quiet", *words]) == 0, capsys.readouterr().err
    assert dtypes == {torch.bfloat16}
    dtypes.clear()
    assert main(["sample", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert dtypes == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
def test_it_is_the_attention_of_pytorch(causal, dtype, dtypes):
    query, key, value = torch.randn(3, 2, 5, 2, 8).to(dtype)
    got = attend(query, key, value, "flash", causal=causal)
    assert got.dtype == dtype and dtypes == {torch.bfloat16 if dtype == torch.float32 else dtype}
    torch.testing.assert_close(got, attend(query, key, value, "sdpa", causal=causal), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_flash_attn_4_is_taken_where_it_stands_alone(causal, dtypes_of_4):
    query, key, value = torch.randn(3, 2, 5, 2, 8)
    got = attend(query, key, value, "flash", causal=causal)
    assert dtypes_of_4 == {torch.bfloat16}
    torch.testing.assert_close(got, attend(query, key, value, "sdpa", causal=causal), rtol=2e-2, atol=2e-2)


def test_of_both_flash_attn_is_taken(dtypes_of_4, dtypes):
    query = torch.randn(1, 5, 2, 8)
    attend(query, query, query, "flash")
    assert dtypes and not dtypes_of_4


def test_a_folder_without_either_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ggm-kernels\[flash4\]'"):
        GGM(GGMConfig(3, ChainConfig(4, sweeps=1), backbone("masked", attention="flash")))


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("Could not run 'flash_attn::_flash_attn_forward'"),
        AssertionError("q must be on CUDA"),
    ],
    ids=["flash-attn", "flash-attn-4"],
)
def test_a_device_that_it_does_not_serve(error, dtypes, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(sys.modules["flash_attn"], "flash_attn_func", refuse)
    query = torch.randn(1, 5, 2, 8)
    with pytest.raises(ValueError, match="attention: got 'flash' on cpu; allowed there: 'sdpa'"):
        attend(query, query, query, "flash")


@pytest.mark.parametrize("kind", ["masked", "hollow"])
def test_without_it_no_network_is_made(kind, tmp_path, dtypes, monkeypatch, capsys):
    model = GGMConfig(3, ChainConfig(4, sweeps=1), backbone(kind, attention="flash"))
    GGM(model).save_pretrained(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if it were not installed
    with pytest.raises(
        MissingExtraError, match=r"flash_attn is not installed: pip install 'ggm-kernels\[flash\]'"
    ):
        GGM(model)
    # What comes first costs nothing: the data are not even looked for.
    config = tmp_path / "run.yaml"
    config.write_text(f"out: {tmp_path / 'run'}\n{RUN}")
    words = [
        "--set",
        f"model.backbone.kind={kind}",
        "--set",
        "data={kind: tokens, source: none, vocab_size: 2}",
    ]
    for command in (["train", str(config), *words], ["sample", str(tmp_path / "model")]):
        assert main(command) == 1
        told = capsys.readouterr().err
        assert told == "ggm: error: flash_attn is not installed: pip install 'ggm-kernels[flash]'\n"


def test_one_that_does_not_load_says_why(tmp_path, monkeypatch):
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol:\\n _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    with pytest.raises(
        MissingExtraError, match="flash_attn is installed and does not load: undefined symbol: _ZN"
    ):
        GGM(GGMConfig(3, ChainConfig(4, sweeps=1), backbone("masked", attention="flash")))
