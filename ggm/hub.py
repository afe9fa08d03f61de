"""Weights as config.json and safetensors, in a folder or on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ggm.extras import require

try:
    from huggingface_hub import PyTorchModelHubMixin
except ModuleNotFoundError:

    class PyTorchModelHubMixin:  # type: ignore[no-redef]
        """Stands in for the mixin where huggingface_hub is not installed: tells how to get it."""

        def __init_subclass__(cls, **_: Any) -> None:
            super().__init_subclass__()

        def save_pretrained(self, *_: Any, **__: Any) -> None:
            """Raise MissingExtraError."""
            require("huggingface_hub", extra="hub")

        push_to_hub = save_pretrained

        @classmethod
        def from_pretrained(cls, *_: Any, **__: Any) -> Any:
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

    A folder holds config.json and model.safetensors: the weights to sample with. What `ggm train`
    writes also holds training.safetensors: the weights without averaging, to train on from. They are
    read by ``from_pretrained(folder, weights="training")``.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        write_weights(self, save_directory / AVERAGED)
        # The mixin leaves a config.json alone that an earlier save left: it may be of another model.
        (save_directory / CONFIG).unlink(missing_ok=True)

    # No other keywords: one that nothing reads is a mistake.
    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
        weights: str = "averaged",
        map_location: str = "cpu",
    ) -> Any:
        files = {"averaged": AVERAGED, "training": TRAINING}
        if weights not in files:
            raise ValueError(f"weights: got {weights!r}; allowed: {', '.join(files)}")
        if config is None:
            raise FileNotFoundError(f"{model_id}: no {CONFIG} there")
        if Path(model_id).is_dir():
            path = Path(model_id, files[weights])
        else:
            hub = require("huggingface_hub", extra="hub")
            path = hub.hf_hub_download(
                model_id,
                files[weights],
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        model = cls.from_config(config)
        read_weights(model, Path(path))
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
        If it is no safetensors file, or of another shape.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    safetensors = require("safetensors.torch", extra="hub")
    try:
        safetensors.load_model(model, str(path))
    except (RuntimeError, require("safetensors", extra="hub").SafetensorError) as error:
        raise ValueError(f"{path}: not the weights of this model: {' '.join(str(error).split())}") from error
