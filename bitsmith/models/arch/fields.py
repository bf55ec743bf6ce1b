"""Reads the values of a configuration. Each is checked for type and range; errors name the file and the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitsmith.errors import FileError

_LARGEST = 2**31 - 1
_LARGEST_FLOAT = 1e300  # the comparison with it also rejects NaN


@dataclass(frozen=True)
class Fields:
    """A mapping read from a file.

    values: values by name, from JSON or GGUF
    origin: name of the file, for errors
    prefix: prefix of every name ("llama." for GGUF keys)
    """

    values: Mapping[str, Any]
    origin: str
    prefix: str = ""

    def has(self, name: str) -> bool:
        """Whether the field exists and is not null."""
        return self.values.get(self.prefix + name) is not None

    def fail(self, name: str, expected: str, found: object) -> FileError:
        """The error for a field with an unexpected value."""
        shown = repr(found)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return FileError(f"{self.origin}: {self.prefix}{name}: expected {expected}, found {shown}.")

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1, maximum: int = _LARGEST) -> int:
        """An integer in minimum..maximum. `default` if the field is missing or null.

        Raises FileError for another value, and for a missing field without a default.
        """
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not minimum <= value <= maximum:
            raise self.fail(name, f"an integer in {minimum}..{maximum}", value)
        return int(value)

    def given(self, name: str) -> bool:
        """Whether the field has a value that is true in Python. Where transformers reads `if value` or `value or
        default`, 0, "" and false count as missing; elsewhere only null does, see `has`."""
        return bool(self.values.get(self.prefix + name))

    def epsilon(self, name: str, default: float | None = None) -> float:
        """A finite number of at least 0."""
        value = self.number(name, default, positive=False)
        if value < 0:
            raise self.fail(name, "a number of at least 0", value)
        return value

    def number(self, name: str, default: float | None = None, *, positive: bool = True) -> float:
        """A finite number, greater than zero if `positive`. Defaults and errors are those of `integer`."""
        value = self._get(name, default)
        sound = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST_FLOAT
        if not sound or (positive and value <= 0):
            raise self.fail(name, "a number greater than 0" if positive else "a finite number", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, "true or false", value)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.fail(name, "a string", value)
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(self.prefix + name)
        if value is None:
            value = default
        if value is None:
            raise FileError(f"{self.origin}: {self.prefix}{name} is missing; it is needed for the model's shape.")
        return value


def is_neutral(value: object) -> bool:
    """Whether a field with this value says nothing: null, false, zero, or empty."""
    return value is None or (isinstance(value, (bool, int, float, str, list, dict)) and not value)
