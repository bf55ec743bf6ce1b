"""Values of a file as plain values for JSON, and shortened for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bitsmith.errors import printable

_SHOWN_ITEMS = 8
_SHOWN_CHARACTERS = 200
_SHOWN_KEYS = 200


def plain(value: Any) -> Any:
    """The whole value for JSON: arrays as lists; numbers that JSON lacks as "NaN", "Infinity" and "-Infinity"."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f" or np.isfinite(value).all():
            return value.tolist()
        return [plain(each) for each in value.tolist()]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def shown(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Text for each key, however large the values are. Beyond 200 keys, one line says how many more there are."""
    keys = list(metadata)
    found = {_cut(one_line(key[: _SHOWN_CHARACTERS + 1])): brief(metadata[key]) for key in keys[:_SHOWN_KEYS]}
    if len(keys) > _SHOWN_KEYS:
        found["..."] = f"{len(keys) - _SHOWN_KEYS:,} more keys"
    return found


def brief(value: Any, depth: int = 0) -> str:
    """One line: the beginning of a long text or list, and its length."""
    if isinstance(value, str):
        cut = _cut(one_line(value[: _SHOWN_CHARACTERS + 1]))
        return cut if len(value) <= _SHOWN_CHARACTERS else f"{cut} ({len(value):,} characters)"
    if isinstance(value, list | tuple | np.ndarray):
        if depth > 1:
            return f"[{len(value):,} items]"
        first = ", ".join(brief(item, depth + 1) for item in value[:_SHOWN_ITEMS])
        return f"[{first}]" if len(value) <= _SHOWN_ITEMS else f"[{first}, ...] ({len(value):,} items)"
    return str(value)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def one_line(text: str) -> str:
    """The text with every control character escaped, line ends too."""
    return printable(text, keep="")
