"""Options of a command, each declared once as a field: parser, help, TOML file, conversion and checks follow from it."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import difflib
import math
import operator
import shlex
import tomllib
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

from .arguments import ConfigError

SIZES = tuple[int, ...]
NAMES = tuple[str, ...]
_KINDS: dict[type, dict[str, Any]] = {}
METAVARS = {int: "N", float: "X", SIZES: "N,N", NAMES: "NAME,NAME", str: "TEXT"}


class Range(NamedTuple):
    """Numbers that an option may be, what is expected where a value is none of them, and where it is too large."""

    words: str
    least: float
    below: float = math.inf
    too_large: str | None = None

    def expected(self, value: float) -> str | None:
        """What is expected in the place of this value; None where it will do."""
        if not value >= self.least:
            return self.words
        return None if value < self.below else self.too_large or self.words


POSITIVE = Range("a positive number", math.ulp(0.0))
NOT_NEGATIVE = Range("a number of at least 0", 0)


def at_least(least: int) -> Range:
    """Whole numbers from this one on."""
    return Range(f"at least {least}", least, 2**32, "less than 2**32")


def option(
    default: Any,
    text: str,
    *,
    within: Range | None = None,
    metavar: str | None = None,
    kept: bool = True,
) -> Any:
    """A field of `Options`: its default, help, and the numbers that it, or each of its sizes, may be.

    A field whose type is a Literal is one of its words. The default is None where there is none. `metavar` is what
    the help calls the value. What is not `kept` says where or how fast something goes, not what it is: it is left out
    of comparisons and files.
    """
    about = {"help": text, "within": within, "metavar": metavar}
    return dataclasses.field(default=default, compare=kept, metadata=about)


@dataclasses.dataclass(frozen=True)
class Options:
    """What a command does. Field names are the options with underscores."""

    COMMAND = ""
    """Its name on the command line."""

    def __post_init__(self) -> None:
        for name in fields(type(self)):
            _check(type(self), name, getattr(self, name))

    @classmethod
    def resolve(cls, given: dict[str, Any], file: str | None = None, environment: dict[str, Any] | None = None) -> Self:
        """The options given on the command line, then those of a TOML file, of the environment, and defaults."""
        values = (environment or {}) | ({} if file is None else read_toml(Path(file), cls))
        return cls(**values | {name: _convert(cls, name, given[name]) for name in fields(cls) if name in given})

    def command(self) -> str:
        """The command line that repeats this, wherever it is written to."""
        words = ["bnengine", self.COMMAND]
        for field in fields(type(self)).values():
            value = getattr(self, field.name)
            if field.compare and value != field.default:
                flag = field.name.replace("_", "-")
                words += (
                    [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", _text(value)]
                )
        return shlex.join(words)


def fields(cls: type[Options]) -> dict[str, dataclasses.Field[Any]]:
    """The options by name."""
    return {field.name: field for field in dataclasses.fields(cls)}


def kinds(cls: type[Options]) -> dict[str, Any]:
    """The type of each option: int, float, bool, str, a Literal, SIZES or NAMES, without None where it need not be given."""
    if cls not in _KINDS:
        hints = typing.get_type_hints(cls).items()
        _KINDS[cls] = {
            name: typing.get_args(hint)[0] if type(None) in typing.get_args(hint) else hint for name, hint in hints
        }
    return _KINDS[cls]


def choices(cls: type[Options], name: str) -> tuple[str, ...]:
    """The words that the option may be; none where it is something else."""
    kind = kinds(cls)[name]
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def default_text(cls: type[Options], name: str) -> str:
    """The default as the command line takes it; empty where there is none."""
    default = fields(cls)[name].default
    return ("on" if default else "") if default is None or isinstance(default, bool) else _text(default)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def add_options(parser: argparse.ArgumentParser, cls: type[Options], names: Iterable[str] | None = None) -> None:
    """Options of a command to a parser: these, or all of them and --config for a file that holds some."""
    if names is None:
        words = "TOML file with any of these options, under their names with _"
        parser.add_argument("--config", metavar="FILE", help=words)
    for name in fields(cls) if names is None else names:
        about, kind, flag = fields(cls)[name].metadata, kinds(cls)[name], "--" + name.replace("_", "-")
        shown = default_text(cls, name)
        text = about["help"] + (f" (default: {shown})" if shown and "default" not in about["help"] else "")
        more: dict[str, Any] = {"metavar": about["metavar"] or METAVARS.get(kind)}
        if kind is bool:
            more = {"action": argparse.BooleanOptionalAction}
        elif choices(cls, name):
            more = {"choices": choices(cls, name)}
        elif kind in (int, float):
            more["type"] = kind
        parser.add_argument(flag, help=text, **more)


def read_toml(path: Path, cls: type[Options]) -> dict[str, Any]:
    """Options by name from a TOML file; a name that is none or a value that cannot be is refused."""
    if not path.is_file():
        raise ConfigError(f"config: no such file: {path}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: what is no TOML, no UTF-8, too long a number
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error
    for name, value in values.items():
        try:
            values[name] = _convert(cls, name, value)
            _check(cls, name, values[name])
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return values


def _convert(cls: type[Options], name: str, value: Any) -> Any:
    """A value of the option's kind, from text or TOML."""
    kind = kinds(cls).get(name)
    if kind is None:
        close = difflib.get_close_matches(name, fields(cls), 1)
        hint = f"did you mean {close[0]}?" if close else f"the options are {', '.join(fields(cls))}"
        raise ConfigError(f"unknown option {name!r}; {hint}")
    if kind == SIZES:
        return _sizes(name, value)
    if kind == NAMES:
        return _names(name, value)
    if isinstance(value, int) and abs(value) >= 2**63:  # too long to be shown, or for a float
        raise ConfigError(f"{name}: expected a number below 2**63, got a larger one")
    if choices(cls, name):
        kind = str
    if kind is str and type(value) is int:  # the position of a column, say
        return str(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{name}: expected {kind.__name__}, got {value!r}")
    return value


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else [value] if type(value) is int else value
    try:
        sizes = tuple(map(int if isinstance(value, str) else operator.index, parts))
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: expected sizes such as 256,128, got {value!r}") from None
    return () if sizes == (0,) else sizes


def _names(name: str, value: Any) -> tuple[str, ...]:
    """Names separated by commas; one that holds a comma stands in quotes, as in a CSV file."""
    parts = next(csv.reader([value]), []) if isinstance(value, str) else [value] if type(value) is int else value
    if not isinstance(parts, (list, tuple)) or not all(type(part) in (str, int) for part in parts):
        raise ConfigError(f"{name}: expected names such as first,second, got {value!r}")
    return tuple(str(part) for part in parts)


def _check(cls: type[Options], name: str, value: Any) -> None:
    """Refuse a value that is none of the words, or out of the range, of its option."""
    words, within = choices(cls, name), fields(cls)[name].metadata["within"]
    if words and value not in (*words, None):
        raise ConfigError(f"{name}: expected {', '.join(words)}, got {value!r}")
    if within is None or value is None:
        return
    for number in value if isinstance(value, tuple) else (value,):
        expected = within.expected(number)
        if expected is not None:
            raise ConfigError(f"{name}: expected {expected}, got {_text(value)}")
