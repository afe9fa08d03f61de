"""Dataclasses from plain dictionaries and YAML, with every key and type checked."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ggm.extras import require
from ggm.files import read_text

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration cannot be used; the message names the key and what is allowed."""


def allow(config: Any, name: str, right: bool, allowed: object) -> None:
    """Raise ValueError, which names the field and what is allowed, unless its value is right."""
    if not right:
        value = getattr(config, name)
        shown = repr(value) if isinstance(value, str) else value
        raise ValueError(f"{name}: got {shown}; allowed: {allowed}")


def build(cls: type[T], values: Any, where: str = "") -> T:
    """Make a dataclass, and those in it, from a dictionary.

    Parameters
    ----------
    cls : type
        A dataclass. Its fields may be int, float, bool, str, Literal, tuples of one type, dataclasses,
        and unions of these with None. In a union of dataclasses the key ``kind`` chooses, which each of
        them must have as a Literal; without it the first one is taken.
    values : mapping
        Its fields. What is left out takes its default.
    where : str
        Name of the part, for messages.

    Raises
    ------
    ConfigError
        For an unknown or missing key, a wrong type, or a value that the dataclass refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'configuration'}: got {_shown(values)}; allowed: keys with values")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{_join(where, key)}: unknown key; allowed: {', '.join(sorted(fields))}")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_join(where, name)}: missing")
    hints = typing.get_type_hints(cls)
    parts = {key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()}
    try:
        return cls(**parts)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(_join(where, str(error))) from error


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file, then replace some of its values.

    Parameters
    ----------
    path : Path
        The file.
    overrides : sequence of str
        Words like ``model.backbone.depth=2``; what is right of the = is YAML, too.

    Raises
    ------
    OSError
        If the file cannot be read.
    ConfigError
        If it is not YAML, or an override is not of this form.
    """
    values = _parse(read_text(path), str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: got {_shown(values)}; allowed: keys with values")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"overrides: got {override!r}; allowed: KEY=VALUE")
        *parents, last = key.split(".")
        part = values
        for parent in parents:
            part = part.setdefault(parent, {})
            if not isinstance(part, dict):
                raise ConfigError(f"overrides: got {override!r}; {parent} has no keys")
        part[last] = _parse(text, "overrides: " + override)
    return values


def _parse(text: str, source: str) -> Any:
    yaml = require("yaml", extra="train")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return None
        _check_once(root, source)
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from error


def _check_once(root: Any, source: str) -> None:
    """Raise ConfigError if a key stands twice in a mapping of YAML, of which the last would win."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node.value, str):  # an alias may lead anywhere
            continue
        seen.add(id(node))
        pairs = [pair for pair in node.value if isinstance(pair, tuple)]
        keys: set[str] = set()
        for key, _ in pairs:
            if isinstance(key.value, str) and key.value in keys:
                line = key.start_mark.line + 1
                raise ConfigError(f"{source}: line {line}: {key.value}: got it twice; allowed: once")
            keys |= {key.value} if isinstance(key.value, str) else set()
        waiting += [value for _, value in pairs] if pairs else node.value


def _convert(expected: Any, value: Any, where: str) -> Any:
    """Return `value` as the annotation `expected` wants it."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: got {_shown(value)}; allowed: {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if dataclasses.is_dataclass(expected):
        return value if isinstance(value, expected) else build(expected, value, where)  # type: ignore[arg-type]
    return _convert_scalar(expected, value, where)


def _convert_union(members: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in members:
        return None
    members = tuple(member for member in members if member is not type(None))
    if len(members) == 1:
        return _convert(members[0], value, where)
    by_kind = {kind: member for member in members for kind in _kinds(member)}
    kind = value.get("kind", next(iter(by_kind))) if isinstance(value, Mapping) else next(iter(by_kind))
    if not isinstance(kind, str) or kind not in by_kind:
        raise ConfigError(f"{where}.kind: got {_shown(kind)}; allowed: {', '.join(sorted(by_kind))}")
    return _convert(by_kind[kind], value, where)


def _kinds(member: Any) -> tuple[str, ...]:
    return typing.get_args(typing.get_type_hints(member)["kind"])


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{where}: got {_shown(value)}; allowed: a list")
    item = arguments[0]
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        raise ConfigError(f"{where}: got {_shown(value)}; allowed: a list of {len(arguments)}")
    return tuple(_convert(item, part, f"{where}[{i}]") for i, part in enumerate(value))


def _convert_scalar(expected: type, value: Any, where: str) -> Any:
    if expected is float:
        # PyYAML takes 1e-3 for text: YAML 1.1 wants 1.0e-3.
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                pass
        raise ConfigError(f"{where}: got {_shown(value)}; allowed: a number")
    if isinstance(value, bool) is not (expected is bool) or not isinstance(value, expected):
        names = {int: "an integer", str: "text", bool: "true or false"}
        raise ConfigError(f"{where}: got {_shown(value)}; allowed: {names[expected]}")
    return value


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)
