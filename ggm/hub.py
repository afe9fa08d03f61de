"""Weights as config.json and safetensors, in a folder or on the Hugging Face Hub."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggm.digests import DIGESTS, check_digests
from ggm.extras import require
from ggm.files import read_json

if TYPE_CHECKING:
    import torch

try:
    from huggingface_hub import PyTorchModelHubMixin
except ModuleNotFoundError:

    class PyTorchModelHubMixin:  # type: ignore[no-redef]
        """Stands in for the mixin where huggingface_hub is not installed: folders, but not the Hub."""

        def __init_subclass__(cls, **_: Any) -> None:
            super().__init_subclass__()

        def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
            """Write a folder that `from_pretrained` reads; all options are about the Hub."""
            if options:
                self.push_to_hub()
            folder = Path(save_directory)
            folder.mkdir(parents=True, exist_ok=True)
            self._save_pretrained(folder)  # type: ignore[attr-defined]

        def push_to_hub(self, *_: Any, **__: Any) -> None:
            """Raise MissingExtraError."""
            require("huggingface_hub", extra="hub")


CONFIG = "config.json"
AVERAGED = "model.safetensors"
TRAINING = "training.safetensors"


class HubWeights(
    PyTorchModelHubMixin,
    library_name="ggm-kernels",
    tags=["discrete-diffusion", "glauber-dynamics"],
    paper_url="https://arxiv.org/abs/2405.17035",
):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of a module built from a configuration.

    A folder holds config.json and model.safetensors: the weights to sample with; writing and reading it
    needs safetensors, the Hub huggingface_hub, too. If the weights are an average, training.safetensors
    beside it holds the weights without averaging. `from_pretrained` reads both, so that the model can be
    saved again and trained on (`ggm.train`) as if it had never been exported.
    ``from_pretrained(folder, weights="training")`` is the model without averaging.

    Attributes
    ----------
    training_weights : dict or None
        Weights without averaging, by their names in the module, if its own are an average. They are
        no parameters, stay on the device that they came from, and on the CPU stay in their file, of which
        the system keeps in memory what it has room for.
    """

    config: Any
    training_weights: dict[str, torch.Tensor] | None = None

    def _save_pretrained(self, save_directory: Path) -> None:
        write_weights(self, save_directory / AVERAGED)
        if self.training_weights is not None:
            _write_named(self.training_weights, save_directory / TRAINING)
        else:  # an earlier save may have left those of another model
            (save_directory / TRAINING).unlink(missing_ok=True)
        (save_directory / DIGESTS).unlink(missing_ok=True)  # of what an earlier save left
        config = json.dumps(self.config.to_dict(), sort_keys=True, indent=2)
        (save_directory / CONFIG).write_text(config, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """Model of a folder, or of a repository on the Hub; see the class.

        Raises
        ------
        OSError
            If a file is missing.
        ValueError
            If a file is damaged, or a weight not finite. Those of a checkpoint of `ggm train` must be the
            ones that it wrote.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            require("huggingface_hub", extra="hub")
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        weights = (TRAINING,) if options.get("weights") == "training" else (AVERAGED, TRAINING)
        check_digests(folder, (CONFIG, *weights))
        # The mixin would read config.json, too, and tell less of what is wrong with it.
        config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
        return cls._from_pretrained(model_id=str(folder), config=config, **options)

    # No other keywords: one that nothing reads is a mistake.
    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        config: dict[str, Any] | None = None,
        weights: str = "averaged",
        map_location: str = "cpu",
    ) -> Any:
        files = {"averaged": AVERAGED, "training": TRAINING}
        if weights not in files:
            raise ValueError(f"weights: got {weights!r}; allowed: {', '.join(files)}")
        if config is None:
            raise FileNotFoundError(f"{model_id}: no {CONFIG} there")
        options = {
            "revision": revision,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
        }
        model = cls.from_config(config)
        read_weights(model, _fetch(model_id, files[weights], options))
        if weights == "averaged":
            model.training_weights = _read_beside(model, model_id, options)
        return model.to(map_location)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Model of a configuration, with new weights."""
        raise NotImplementedError


def write_weights(model: Any, path: Path) -> None:
    """Write the weights of a module; a tensor that stands under two names is written once."""
    require("safetensors.torch", extra="hub").save_model(model, str(path), metadata={"format": "pt"})


def read_weights(model: Any, path: Path) -> None:
    """Read weights that `write_weights` wrote into a module of the same shape.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no safetensors file, of another shape, or a weight is not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    safetensors = require("safetensors.torch", extra="hub")
    try:
        safetensors.load_model(model, str(path))
    except (RuntimeError, require("safetensors", extra="hub").SafetensorError) as error:
        raise ValueError(f"{path}: not the weights of this model: {' '.join(str(error).split())}") from error
    check_finite(model.state_dict(), path)


def check_finite(weights: Mapping[str, torch.Tensor], path: str | PathLike[str]) -> None:
    """Raise ValueError if a weight that was read from a file is not finite: all it gives would be noise."""
    for name, values in weights.items():
        # Of NaN among them, both are NaN.
        if (
            values.is_floating_point()
            and values.numel()
            and not all(map(math.isfinite, map(float, values.aminmax())))
        ):
            raise ValueError(f"{path}: got weights that are not finite, in {name}; allowed: finite ones")


def _fetch(model_id: str, name: str, options: dict[str, Any]) -> Path:
    """Path of a file of a folder, or of a repository on the Hub."""
    if Path(model_id).is_dir():
        return Path(model_id, name)
    return Path(require("huggingface_hub", extra="hub").hf_hub_download(model_id, name, **options))


def _read_beside(model: Any, model_id: str, options: dict[str, Any]) -> dict[str, torch.Tensor] | None:
    """Weights without averaging, mapped into memory, or None if there are none."""
    if Path(model_id).is_dir():
        path = Path(model_id, TRAINING)
    else:
        try:
            path = _fetch(model_id, TRAINING, options)
        except require("huggingface_hub.errors", extra="hub").EntryNotFoundError:
            return None
    if not path.is_file():
        return None
    safetensors = require("safetensors.torch", extra="hub")
    try:
        weights = safetensors.load_file(path)
    except require("safetensors", extra="hub").SafetensorError as error:
        raise ValueError(f"{path}: not the weights of this model: {error}") from error
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise ValueError(f"{path}: not the weights of this model: other names or shapes")
    check_finite(weights, path)
    return weights


def _write_named(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights by their names, aside first: they may be mapped from the very file that is replaced."""
    aside = path.with_name(f".{path.name}")
    values = {name: value.contiguous() for name, value in weights.items()}
    require("safetensors.torch", extra="hub").save_file(values, aside, metadata={"format": "pt"})
    aside.replace(path)
