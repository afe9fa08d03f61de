"""Weights, vocabulary and model card of a model, in a folder or on the Hugging Face Hub."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ggm.data.images.tokenizers import IMAGES, WEIGHTS
from ggm.data.text import TOKENIZER
from ggm.data.vocabulary import Vocabulary, copy
from ggm.digests import DIGESTS, check_digests
from ggm.extras import require
from ggm.files import read_json, replacing, write_text
from ggm.model_card import CARD, PICTURE, Training, model_card

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
# Folder of a run that holds its checkpoints.
CHECKPOINTS = "checkpoints"
_STEP = re.compile(r"step-\d+")
_BESIDE = [TOKENIZER, IMAGES, f"{WEIGHTS}/*", CARD, PICTURE]
_USE = re.compile(r'(?<=GGM\.from_pretrained\(")[^"]*')


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

    Folders of `ggm train` serve, too: that of a checkpoint, or that of a run, which stands for its last one.
    What the tokens mean is written and read with the weights: tokenizer.json, or images.json and the network
    that draws pictures; and README.md, a model card, which stays as it is where there is one.

    Attributes
    ----------
    training_weights : dict or None
        Weights without averaging, by their names in the module, if its own are an average. They are
        no parameters, stay on the device that they came from, and on the CPU stay in their file, of which
        the system keeps in memory what it has room for. None as soon as the module's own weights are
        others than when these were set, since they are no average of them any more: by steps of an optimiser
        or other weights that are loaded, but not by a move to another device or dtype.
    vocabulary : Vocabulary
        What the tokens mean, if it is known. Samples have texts or pictures with it.
    trained : Training or None
        What the model card is to tell of the training.
    """

    config: Any
    vocabulary: Vocabulary = Vocabulary()
    trained: Training | None = None
    # Where it was read from, and what it is to be called on the Hub.
    _origin: Path | None = None
    _repo_id: str | None = None
    # Weights without averaging, and checksums of the average of them.
    _unaveraged: dict[str, torch.Tensor] | None = None
    _average: tuple[int, ...] = ()

    @property
    def training_weights(self) -> dict[str, torch.Tensor] | None:
        """Weights without averaging; see the class."""
        if self._unaveraged is None or self._average != self._checksums():
            return None
        return self._unaveraged

    @training_weights.setter
    def training_weights(self, weights: dict[str, torch.Tensor] | None) -> None:
        self._unaveraged = weights
        self._average = () if weights is None else self._checksums()

    def _checksums(self) -> tuple[int, ...]:
        """Checksums of the weights: unlike versions of tensors they see any change, and survive a copy."""
        return tuple(map(_checksum, self.state_dict().values()))  # type: ignore[attr-defined]

    def _save_pretrained(self, save_directory: Path) -> None:
        write_weights(self, save_directory / AVERAGED)
        training = self.training_weights
        if training is not None:
            _write_named(training, save_directory / TRAINING)
        else:  # an earlier save may have left those of another model
            (save_directory / TRAINING).unlink(missing_ok=True)
        (save_directory / DIGESTS).unlink(missing_ok=True)  # of what an earlier save left
        config = json.dumps(self.config.to_dict(), sort_keys=True, indent=2)
        (save_directory / CONFIG).write_text(config, encoding="utf-8")
        self.vocabulary.save(save_directory)
        self._save_card(save_directory)

    def _save_card(self, folder: Path) -> None:
        """Write a card where there is none: that of the folder that the model came from, or a new one."""
        if (folder / CARD).exists():
            return
        name = self._repo_id or folder.name
        origin = "" if self._origin is None else _text(self._origin / CARD)
        if _USE.search(origin):
            assert self._origin is not None
            copy(self._origin / PICTURE, folder / PICTURE)
            text = _USE.sub(lambda _: name, origin)
        else:
            parameters = sum(p.numel() for p in self.parameters())  # type: ignore[attr-defined]
            kind = "text" if self.vocabulary.has_texts else "images" if self.vocabulary.has_pictures else None
            text = model_card(self.config.to_dict(), parameters, kind, self.trained, name)
        write_text(folder / CARD, text)

    def push_to_hub(self, repo_id: str = "", **options: Any) -> Any:
        """Upload weights, vocabulary and card; options are those of `huggingface_hub.ModelHubMixin`.

        Raises
        ------
        MissingExtraError
            If huggingface_hub is not installed.
        """
        self._repo_id = repo_id
        try:
            return super().push_to_hub(repo_id, **options)
        finally:
            self._repo_id = None

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
        if (folder / CHECKPOINTS).is_dir():
            folder = find(folder)
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
        beside = _read_beside(model, model_id, options) if weights == "averaged" else None
        model._origin = _folder(model_id, options)
        model.vocabulary = Vocabulary(folder=model._origin, device=map_location)
        model = model.to(map_location)
        model.training_weights = beside
        return model

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Model of a configuration, with new weights."""
        raise NotImplementedError


def find(path: Path) -> Path:
    """Folder of a checkpoint: the path itself, or the last checkpoint of a run that it is of.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if (path / CONFIG).is_file():
        return path
    found = complete(path / CHECKPOINTS)
    if not found:
        raise FileNotFoundError(f"{path}: neither a folder with {CONFIG} nor that of a run with checkpoints")
    return found[-1]


def complete(folder: Path) -> list[Path]:
    """Checkpoints in a folder, in the order of their steps: those that were written to their end."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))  # some have more digits


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


def _checksum(values: torch.Tensor) -> int:
    """CRC-32 of the bytes of a tensor; of a sharded one, of the part that this process holds."""
    local = values.to_local() if hasattr(values, "to_local") else values
    return zlib.crc32(local.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _folder(model_id: str, options: dict[str, Any]) -> Path:
    """A folder itself; of a repository on the Hub, one with what lies beside the weights."""
    if Path(model_id).is_dir():
        return Path(model_id)
    hub = require("huggingface_hub", extra="hub")
    return Path(hub.snapshot_download(model_id, allow_patterns=_BESIDE, **options))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


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
    values = {name: value.contiguous() for name, value in weights.items()}
    with replacing(path) as aside:
        require("safetensors.torch", extra="hub").save_file(values, aside, metadata={"format": "pt"})
