"""Flags of the command line from dataclasses: types, defaults and help are those of the fields."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ggm.sampling.config import Ramp

_METAVARS = {int: "N", float: "X", str: "TEXT"}
_ENTRY = re.compile(r"(\w+(?:, \w+)*) :")
_NAMED = re.compile(r"`([\w.]+)`")


class Flags:
    """Fields of a dataclass as flags of a command; those without a default are its arguments.

    Parameters
    ----------
    cls : type
        A dataclass with the numpydoc section "Attributes". Fields may be int, float, bool, str, Path,
        Literal, float or `Ramp`, lists of str, and any of these or None.
    only : sequence of str, optional
        Fields that are flags; the default is all.
    names : mapping, optional
        Names of flags that are not those of their fields, as ``{"batch_size": "batch"}``.
    defaults : mapping, optional
        Defaults that are not those of the fields.
    help : mapping, optional
        What help says of fields in place of their docstring.
    words : mapping, optional
        Flags that decide other fields, by what messages call these.
    path : str
        What the library calls the dataclass in messages where its fields alone could be those of another.
    title : str, optional
        Of a group of their own in the help.
    """

    def __init__(
        self,
        cls: type,
        only: Sequence[str] | None = None,
        *,
        names: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
        help: Mapping[str, str] | None = None,
        words: Mapping[str, str] | None = None,
        path: str = "",
        title: str | None = None,
    ) -> None:
        self.cls, self._title = cls, title
        fields = dataclasses.fields(cls)
        self._fields = [field for field in fields if only is None or field.name in only]
        self._names = {field.name: (names or {}).get(field.name, field.name) for field in self._fields}
        self._defaults, self._help, self._path = defaults or {}, help or {}, path
        self._others = words or {}

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags to a parser."""
        group: Any = parser if self._title is None else parser.add_argument_group(self._title)
        hints, docs = typing.get_type_hints(self.cls), {**attribute_docs(self.cls), **self._help}
        for field in self._fields:
            default = self._defaults.get(field.name, _default(field))
            word = self._names[field.name].replace("_", "-")
            options = {**_parsing(hints[field.name]), "help": _help(docs[field.name], default, self._words())}
            if default is not dataclasses.MISSING:
                options["default"] = default
            elif field.metadata.get("required"):
                options["required"] = True
            else:
                group.add_argument(field.name, **options | {"metavar": word.upper()})
                continue
            group.add_argument(f"--{word}", dest=word.replace("-", "_"), **options)

    def make(self, options: argparse.Namespace, **values: Any) -> Any:
        """The dataclass of parsed flags and of other values.

        Raises
        ------
        ValueError
            As the dataclass does, with flags for fields.
        """
        parsed = {field: getattr(options, name.replace("-", "_")) for field, name in self._names.items()}
        try:
            return self.cls(**{**parsed, **values})
        except ValueError as error:
            raise ValueError(with_flags(str(error), self._words())) from error

    def options(self) -> list[str]:
        """The flags, without the command's arguments."""
        parser = argparse.ArgumentParser(add_help=False)
        self.add(parser)
        return [flag for action in parser._actions for flag in action.option_strings]

    def words(self) -> dict[str, str]:
        """Flags by what the library calls them in messages."""
        prefix = f"{self._path}." if self._path else ""
        return {f"{prefix}{field}": flag for field, flag in self._words().items()}

    def _words(self) -> dict[str, str]:
        words = {field: f"--{name.replace('_', '-')}" for field, name in self._names.items()}
        for name in self._names:  # of a `Ramp`
            words |= {f"{name}.{end}": f"{words[name]}.{end}" for end in ("start", "end")}
        return {**self._others, **words}


def with_flags(message: str, words: Mapping[str, str]) -> str:
    """Message of the library that names flags: at its start, as in "count: got 0", and in backquotes."""
    message = _NAMED.sub(lambda found: words.get(found[1], found[0]), message)
    names, colon, rest = message.partition(":")
    flags = [words.get(name, "") for name in names.split(", ")]
    return f"{', '.join(flags)}{colon}{rest}" if all(flags) else message


def description(cls: type) -> str:
    """What the docstring of a dataclass says before its attributes."""
    return inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes\n")[0].rstrip()


def attribute_docs(cls: type) -> dict[str, str]:
    """Descriptions of a dataclass's attributes, from its docstring and those of its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found.update(_entries(inspect.cleandoc(base.__doc__ or "")))
    return found


def _entries(docstring: str) -> Iterator[tuple[str, str]]:
    section = docstring.partition("\nAttributes\n----------\n")[2]
    section = re.split(r"\n\n\w+\n-{3,}\n", section)[0]
    for entry in re.split(r"\n(?=\S)", section):
        head, _, text = entry.partition("\n")
        named = _ENTRY.match(head)
        if named and text:
            yield from ((name, " ".join(text.split())) for name in named[1].split(", "))


def _default(field: Any) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _help(text: str, default: Any, words: Mapping[str, str]) -> str:
    if text.startswith("Whether "):
        text = text[8].upper() + text[9:]
    text = _NAMED.sub(lambda found: words.get(found[1], found[1]), text)
    text = text.replace("`", "").replace("%", "%%")
    text = text if text.endswith("..") else text.removesuffix(".")
    if default is None or default is False or default is dataclasses.MISSING or default == []:
        return text
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    return f"{text} (default: {shown})"


def _parsing(hint: Any) -> dict[str, Any]:
    """What argparse is to do for a type."""
    parts = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
    kind = parts[0]
    if Ramp in parts:
        return {"type": number_or_ramp, "metavar": "X"}
    if kind is bool:
        return {"action": "store_true"}
    if typing.get_origin(kind) is typing.Literal:
        return {"choices": typing.get_args(kind)}
    if typing.get_origin(kind) is list:
        return {"action": "append", "metavar": "TEXT"}
    return {"type": kind, "metavar": _METAVARS.get(kind, "PATH")}


def number_or_ramp(text: str) -> float | Ramp:
    """Number, or two with a colon between them."""
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a number, or START:END")
    return numbers[0] if len(numbers) == 1 else Ramp(*numbers)
