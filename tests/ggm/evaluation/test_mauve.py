import shutil

import pytest

from ggm import extras
from ggm.evaluation.mauve import MauveConfig, check_mauve, mauve
from ggm.extras import MissingExtraError


def test_a_missing_package_is_told(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(extras.importlib, "import_module", import_module)
    with pytest.raises(
        MissingExtraError, match=r"^mauve is not installed: pip install 'ggm-kernels\[mauve\]'$"
    ):
        check_mauve(MauveConfig())


def test_mauve_of_texts(models, tmp_path):
    pytest.importorskip("mauve")
    # It takes names with gpt2 or bert in them only.
    config = MauveConfig(str(shutil.copytree(models["gpt2"], tmp_path / "gpt2")), max_length=24)
    check_mauve(config)
    cats = [f"the cat sat on the mat {'and sat ' * (i % 5)}" for i in range(40)]
    same = mauve(cats, cats, config)
    assert same["value"] == 1.0 and same["samples"] == same["reference_texts"] == 40
    others = ["!!;;" * (2 + i % 3) for i in range(40)]
    far = mauve([*others, ""], cats, config)
    assert 0 < far["value"] < 0.5 and far["samples"] == 40
    with pytest.raises(ValueError, match="cannot be used by mauve-text"):
        check_mauve(MauveConfig("no-such-model"))
