import subprocess
import sys

import pytest
import torch

import ggm
from ggm import extras
from ggm.commands import digits_demo as demo
from ggm.commands.cli import main
from ggm.data.digits import load_digits

PNG = b"\x89PNG\r\n\x1a\n"


def test_digits_are_split_once_and_for_all():
    digits = load_digits(levels=4, held_out=360)
    assert digits.train.shape == (1437, 64) and digits.held_out.shape == (360, 64)
    everything = torch.cat([digits.train, digits.held_out])
    assert everything.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(digits.train, load_digits(levels=4, held_out=360).train)
    # The background is the largest share of every set of digits, the ink the next.
    assert everything.flatten().bincount().argmax() == 0


@pytest.mark.parametrize("levels", [1, 18])
def test_levels_out_of_range_are_refused(levels):
    with pytest.raises(ValueError, match="levels"):
        load_digits(levels=levels)


def test_a_short_demo_writes_its_pictures_and_figures(tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert main(["demo", "--seconds", "1", "--samples", "16", "--out", str(out)]) == 0
    for name in ("samples", "chain", "infill"):
        assert (out / f"{name}.png").read_bytes().startswith(PNG)
    text = capsys.readouterr().out
    for words in ("Frechet distance", "held-out digits", "copies of a training", "likelihood bound"):
        assert words in text
    assert main(["sample", str(out / "model"), "--out", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes().startswith(PNG)


def test_a_closed_folder_is_told_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ggm.files.os.access", lambda path, mode: False)  # root may write anywhere
    monkeypatch.setattr(demo, "train", lambda *_, **__: pytest.fail("training began"))
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    told = f"{tmp_path / 'out'}: no permission to write into {tmp_path}"
    assert capsys.readouterr().err == f"ggm: error: {told}\n"


def test_the_model_is_kept_when_pictures_fail(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no room")

    monkeypatch.setattr(demo.figures, "real_and_sampled", full)
    assert main(["demo", "--seconds", "0.1", "--samples", "16", "--out", str(tmp_path)]) == 1
    assert ggm.GGM.from_pretrained(tmp_path / "model").vocabulary.images is not None


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["demo", "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    for words in ("--seconds", "--seed", "--out", "--samples", "default: 180", "Frechet"):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds", "0"], "--seconds"),
        (["--seconds", "nan"], "--seconds"),
        (["--seed", "-1"], "--seed"),
        (["--samples", "5"], "--samples"),
        (["--out", "{file}"], "file"),
    ],
)
def test_errors_are_one_line(arguments, words, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("in the way")
    arguments = [word.format(file=file) for word in arguments]
    assert main(["demo", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ggm: error: ") and words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib", "safetensors", "tqdm"])
def test_a_missing_package_is_one_line(missing, monkeypatch, capsys):
    def import_module(name):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(extras.importlib, "import_module", import_module)
    assert main(["demo"]) == 1
    error = capsys.readouterr().err
    assert error == f"ggm: error: {missing} is not installed: pip install 'ggm-kernels[demo]'\n"


def test_ggm_runs_as_a_module_and_has_no_traceback():
    run = subprocess.run(
        [sys.executable, "-m", "ggm", "demo", "--samples", "many"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "invalid int value: 'many'" in run.stderr
    assert "Traceback" not in run.stderr


def test_importing_the_library_needs_no_extra():
    code = (
        "import sys\n"
        # None is what an import takes for a module that is not there.
        "sys.modules.update(sklearn=None, matplotlib=None, tqdm=None)\n"
        "import ggm.commands.cli, ggm.commands.demo\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_settles_how_threads_wait_before_torch_is_loaded():
    code = "import sys, ggm.commands.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_there():
    assert all(getattr(ggm, name).__name__ == name for name in ggm.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        ggm.nothing  # noqa: B018


def test_the_demo_samples_as_it_was_trained():
    assert demo.SAMPLING.sites_per_step >= demo.model_config().least_sites
