"""The typed values of GGUF keys. A file written from them again is the same, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from bitsmith.errors import UsageError


class ValueType(IntEnum):
    """Value types of the GGUF specification (gguf_metadata_value_type), by their number in a file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


DTYPES: dict[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}

_BY_DTYPE = {dtype: value_type for value_type, dtype in DTYPES.items()}
_FLOATS = (ValueType.FLOAT32, ValueType.FLOAT64)


@dataclass(frozen=True, eq=False)
class GgufArray:
    """An array value: numbers and booleans as a numpy vector, strings as a tuple, arrays as a tuple of arrays.

    Bytes of a string that are not UTF-8 are kept as lone surrogates (Python's "surrogateescape").
    """

    item: ValueType
    items: np.ndarray | tuple[str, ...] | tuple[GgufArray, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GgufArray):
            return NotImplemented
        if self.item != other.item or len(self) != len(other):
            return False
        if isinstance(self.items, np.ndarray) and isinstance(other.items, np.ndarray):
            return self.items.tobytes() == other.items.tobytes()
        return self.items == other.items

    def __hash__(self) -> int:
        items = self.items.tobytes() if isinstance(self.items, np.ndarray) else self.items
        return hash((self.item, items))

    def plain(self) -> Any:
        """A numpy vector, or a list of strings or (nested) arrays."""
        if isinstance(self.items, np.ndarray):
            return self.items
        return [item.plain() if isinstance(item, GgufArray) else item for item in self.items]


@dataclass(frozen=True)
class Value:
    """One key's value with the type it has in the file."""

    type: ValueType
    value: bool | int | float | str | GgufArray

    def plain(self) -> Any:
        """The value as Python sees it: a scalar, a string, a numpy vector or a list."""
        return self.value.plain() if isinstance(self.value, GgufArray) else self.value


def scalar(value_type: ValueType, value: int | float) -> Value:
    """A number of the given type. Floats are rounded to their type. Raises UsageError if the number does not fit."""
    if value_type in _FLOATS:
        with np.errstate(over="ignore"):
            return Value(value_type, float(DTYPES[value_type].type(value)))
    if value_type not in DTYPES or value_type is ValueType.BOOL or value != int(value):
        raise UsageError(f"{value!r} cannot be a GGUF value of type {value_type.name.lower()}")
    limits = np.iinfo(DTYPES[value_type])
    if not limits.min <= value <= limits.max:
        raise UsageError(f"{value} does not fit a GGUF value of type {value_type.name.lower()}")
    return Value(value_type, int(value))


def u16(value: int) -> Value:
    """An unsigned integer of 16 bits."""
    return scalar(ValueType.UINT16, value)


def u32(value: int) -> Value:
    """An unsigned integer of 32 bits."""
    return scalar(ValueType.UINT32, value)


def i32(value: int) -> Value:
    """A signed integer of 32 bits."""
    return scalar(ValueType.INT32, value)


def f32(value: float) -> Value:
    """A float of 32 bits, rounded to nearest."""
    return scalar(ValueType.FLOAT32, value)


def boolean(value: bool) -> Value:
    """True or false."""
    return Value(ValueType.BOOL, bool(value))


def string(value: str) -> Value:
    """A string, stored as UTF-8."""
    return Value(ValueType.STRING, value)


def array(items: np.ndarray | Sequence[Any], item: ValueType | None = None) -> Value:
    """An array value.

    items: a numpy vector (its dtype gives the type), strings, nested array values, or Python numbers:
        booleans, integers (stored as int32) or floats (stored as float32) unless `item` is given
    item: the type of the items; required if `items` is an empty list
    Raises UsageError if the items do not fit the type, or if the type is missing.
    """
    if isinstance(items, np.ndarray) and item is None:
        item = _BY_DTYPE.get(items.dtype)
    elif item is None:
        item = _guessed(items)
    if item is None:
        raise UsageError("the items of a GGUF array do not determine its type; give the type as `item`")
    if item is ValueType.STRING:
        return Value(ValueType.ARRAY, GgufArray(item, tuple(str(text) for text in items)))
    if item is ValueType.ARRAY:
        return Value(ValueType.ARRAY, GgufArray(item, tuple(_nested(entry) for entry in items)))
    return Value(ValueType.ARRAY, GgufArray(item, _numbers(items, DTYPES[item])))


def _numbers(items: np.ndarray | Sequence[Any], dtype: np.dtype[Any]) -> np.ndarray:
    given = np.asarray(items) if len(items) else np.zeros(0, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = given.astype(dtype)
    if given.ndim != 1 or (dtype.kind in "iub" and not np.array_equal(given, stored)):
        raise UsageError(f"an array of shape {given.shape} and type {given.dtype} does not fit GGUF items of {dtype}")
    stored.flags.writeable = False
    return stored


def _nested(entry: Any) -> GgufArray:
    inner = entry.value if isinstance(entry, Value) else entry
    if not isinstance(inner, GgufArray):
        raise UsageError(f"a nested GGUF array holds arrays, not {type(inner).__name__}")
    return inner


def _guessed(items: np.ndarray | Sequence[Any]) -> ValueType | None:
    first = items[0] if len(items) else None
    for kind, value_type in (
        (bool, ValueType.BOOL),
        (str, ValueType.STRING),
        (int, ValueType.INT32),
        (float, ValueType.FLOAT32),
        ((Value, GgufArray), ValueType.ARRAY),
    ):
        if isinstance(first, kind):
            return value_type
    return None
