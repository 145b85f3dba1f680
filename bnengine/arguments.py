"""What public functions ask of arguments that are no arrays: refused at the door, in one line that names them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np


class ConfigError(ValueError):
    """A request that cannot be met; the message names the option."""


def shown(value: Any) -> str:
    """The value in one short line."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}..."


def as_made(value: Any) -> str:
    """A dataclass without the settings that are their defaults; anything else as it prints itself."""
    settings = getattr(type(value), "__dataclass_params__", None)
    if settings is None or not settings.repr:
        return repr(value)
    words = []
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        if field.default is dataclasses.MISSING:
            words.append(repr(own))
        elif own != field.default:
            words.append(f"{field.name}={own!r}")
    return f"{type(value).__name__}({', '.join(words)})"


def quantity(number: int, noun: str) -> str:
    """The number with its noun: 1 row, 1,797 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """The text with what would move a terminal's cursor, or worse, as Python writes it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def number(name: str, value: Any, least: float, most: float = math.inf, *, words: str | None = None) -> None:
    """Refuse what is no real number from least to most, the ends included; infinity is never a number."""
    if not isinstance(value, Real) or not least <= float(value) <= most or value == math.inf:
        wanted = words or (
            f"a number of at least {least:g}" if most == math.inf else f"a number in [{least:g}, {most:g}]"
        )
        raise ValueError(f"{name}: expected {wanted}, got {shown(value)}")


def integer(name: str, value: Any, least: int, below: int = 2**63) -> None:
    """Refuse what is no int of that size; True is none."""
    if type(value) is not int or not least <= value < below:
        limit = "" if below == 2**63 else f" and less than {below}"
        raise ValueError(f"{name}: expected an int of at least {least}{limit}, got {shown(value)}")


def one_of(name: str, value: Any, choices: Iterable[str | None]) -> None:
    """Refuse what is none of these words, or None where it is one of them."""
    words = list(choices)
    if not (value is None or isinstance(value, str)) or value not in words:
        listed = f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"
        raise ValueError(f"{name}: expected {listed}, got {shown(value)}")


def function(name: str, value: Any) -> None:
    """Refuse what is neither None nor a function."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}: expected None or a function, got {shown(value)}")


def instance(name: str, value: Any, kind: type | tuple[type, ...], words: str) -> None:
    """Refuse what is of another type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {words}, got {shown(value)}")


def refuse_nonfinite(
    name: str,
    x: np.ndarray[Any, Any],
    rows: Sequence[int] | np.ndarray[Any, Any] | None = None,
    kind: type[ValueError] = ValueError,
) -> None:
    """Refuse a value that is not finite, with its column and its row, whose number stands in `rows` where given."""
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        number = row if rows is None else rows[row]
        raise kind(f"{name}: expected finite numbers, got {x[row, column]} in row {number}, column {column}")
