"""Progress bars, which need the optional package tqdm."""

from __future__ import annotations

from typing import Any

from ggm.extras import require


def progress_bar(show: bool, total: float, description: str, **options: Any) -> Any:
    """A tqdm bar, or something silent in its place; a context manager.

    Parameters
    ----------
    show : bool
        Whether to show it. If not, tqdm need not be installed.
    total : float
        What counts as done.
    description : str
        Text before the bar.
    **options
        Passed on to tqdm.

    Raises
    ------
    MissingExtraError
        If it is to be shown and tqdm is not installed.
    """
    if not show:
        return _Silent()
    tqdm = require("tqdm", extra="demo")
    return tqdm.tqdm(total=total, desc=description, dynamic_ncols=True, **options)


class _Silent:
    """Stands in for a bar that is not shown."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, amount: float = 1) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        pass
