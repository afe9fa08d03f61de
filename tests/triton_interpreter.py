"""Triton's interpreter, made to look for its builtins once.

Each call of a function, of those within kernels, too, goes through all names of `triton.language` for those that it
has to replace, which takes a third of the time of a kernel. They are always the same names.
"""

from functools import cache

import triton.language as tl
from triton.runtime import interpreter


@cache
def _names(package) -> list[str]:
    """Names of all builtins of a module or class, whether they are replaced at the moment or not."""
    return [name for name in dir(package) if tl.core.is_builtin(getattr(package, name))]


def _patch_builtin(package, builder, *scope) -> None:
    for name in _names(package):
        member = getattr(package, name)
        if tl.core.is_builtin(member):
            interpreter._patch_attr(package, name, member, builder, *scope)


def look_once() -> None:
    """To be called before the first kernel runs."""
    for package in (tl, tl.core, tl.math, tl.tensor, tl.core.tensor, tl.core.tensor_descriptor_base):
        _names(package)
    interpreter._patch_builtin = _patch_builtin
