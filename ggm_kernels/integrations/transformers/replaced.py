"""Methods of one loaded model replaced, and given back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch


class Replaced:
    """Methods of a model that others stand in for, until `remove()` or the end of a `with` block.

    Parameters
    ----------
    model : torch.nn.Module
        Whose class, parameters and state_dict stay as they are.
    methods : mapping of str to callable
        What stands in, by name.
    undo : callable
        What else is to be taken back.

    Raises
    ------
    RuntimeError
        If the model does not have such a method, or has it replaced already.
    """

    def __init__(
        self, model: torch.nn.Module, methods: Mapping[str, Callable], undo: Callable[[], object]
    ) -> None:
        self._model, self._undo = model, undo
        self._names: list[str] = []
        for name in methods:
            if not hasattr(type(model), name):
                undo()
                raise RuntimeError(
                    f"{type(model).__name__}.{name} is not there in this version of transformers"
                )
            if name in vars(model):
                undo()
                raise RuntimeError(f"{type(model).__name__}.{name} is replaced already: remove() that first")
        for name, method in methods.items():
            setattr(model, name, method)
            self._names.append(name)

    def remove(self) -> None:
        """Give the model its own methods back; again does nothing."""
        for name in self._names:
            delattr(self._model, name)
        if self._names:
            self._undo()
        self._names = []

    def __enter__(self) -> Replaced:
        return self

    def __exit__(self, *_) -> None:
        self.remove()
