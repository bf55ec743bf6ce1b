"""Types of numbers by name: numpy's, and those of ml_dtypes, which is imported when one of them is needed.

Importing ml_dtypes 0.7.0 takes half a second and 6 MB, more than all else that reads a GGUF file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np

NARROW = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e8m0fnu": 1}  # of ml_dtypes: bytes of a number


@cache
def number_type(name: str) -> np.dtype:
    """The type of a name of numpy's or of NARROW, as `np.dtype.name` has it. Raises TypeError for others."""
    if name not in NARROW:
        return np.dtype(name)
    import ml_dtypes

    found: np.dtype = np.dtype(getattr(ml_dtypes, name))
    return found


class NumberTypes(Mapping[str, np.dtype]):
    """Types by a container's or format's own names for them. Names and widths are known without ml_dtypes."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """names: own name -> name for `number_type`"""
        self._names = dict(names)

    def __getitem__(self, name: str) -> np.dtype:
        return number_type(self._names[name])

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, dtype: np.dtype) -> str:
        """The own name of a type. Raises KeyError where it has none."""
        for own, name in self._names.items():
            if dtype.name == name if name in NARROW else dtype == number_type(name):
                return own
        raise KeyError(dtype)

    def width(self, name: str) -> int:
        """Bytes of one number."""
        return NARROW.get(self._names[name]) or self[name].itemsize
