"""Shapes of well-known public models, by name, so that a plan needs no network.

`shapes.json` holds for each model the fields of its published config.json that say its size and its cache, under the
names they have there: what reads a user's config.json reads these. "parameters" counts the weights of the language
model, tied ones once, without vision towers and heads that draft further tokens; "active" is how many of them a token
uses, as the makers of a mixture of experts publish it.

Without a generation, "llama-7b", "llama-13b", "llama-30b" and "llama-65b" are the first one's; "llama-8b", "llama-70b"
and the sizes that only Llama 3 has are the newest Llama 3's, an alias of 3.1 or 3.2.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bitsmith.errors import UsageError

NEAR_TIE = 0.1  # of the logarithm: counts within a tenth of the nearest are as near
_TUNED = {"base", "chat", "hf", "instruct", "it", "pt"}  # words that tell models of one shape apart


@dataclass(frozen=True)
class KnownShape:
    """A public model's shape.

    name: as plans print it
    source: where the fields were published
    parameters: weights in all
    active: weights that one token uses, of a mixture of experts; None for a dense model
    config: fields of config.json
    """

    name: str
    source: str
    parameters: int
    active: int | None
    config: Mapping[str, Any]


def known_shapes() -> Mapping[str, KnownShape]:
    """Every known shape by its name; aliases are left out."""
    return _tables()[0]


def find_shape(name: str) -> KnownShape | None:
    """The shape that `name` means, None where none does.

    Case, owner ("meta-llama/"), separators and words such as "Instruct" do not count: "Meta-Llama-3-8B",
    "llama3-8b" and "Llama 3 8B" are the same.
    """
    shapes, names = _tables()
    known = names.get(_key(name))
    return None if known is None else shapes[known]


def near_names(name: str) -> list[str]:
    """Names of known shapes that resemble `name`, best first; at most four, often none."""
    names = _tables()[1]
    close = difflib.get_close_matches(_key(name), names, n=8)
    return list(dict.fromkeys(names[key] for key in close))[:4]


def nearest_by_count(parameters: int) -> KnownShape:
    """The dense shape nearest to `parameters` weights, measured as a ratio; its cache stands in for an unknown model's.

    Of shapes about as near, one of the Llama architecture; of equal counts, the one of longer context. Raises
    UsageError for a count below 1.
    """
    if parameters < 1:
        raise UsageError(f"a model has at least one parameter, got {parameters}")
    dense = [shape for shape in known_shapes().values() if shape.active is None]
    distances = {shape.name: abs(math.log(shape.parameters / parameters)) for shape in dense}
    nearest = min(distances.values())
    return min(
        (shape for shape in dense if distances[shape.name] <= nearest + NEAR_TIE),
        key=lambda shape: (shape.config["model_type"] != "llama", distances[shape.name], -_context(shape)),
    )


def _context(shape: KnownShape) -> int:
    return int(shape.config.get("max_position_embeddings", 0))


@cache
def _tables() -> tuple[Mapping[str, KnownShape], Mapping[str, str]]:
    """The shapes by name, and the name behind every spelling that `_key` gives."""
    entries = json.loads(Path(__file__).with_name("shapes.json").read_text(encoding="utf-8"))
    shapes = {
        name: KnownShape(name, entry["source"], entry["parameters"], entry["active"], MappingProxyType(entry["config"]))
        for name, entry in entries.items()
    }
    names = {_key(spelling): name for name, entry in entries.items() for spelling in (name, *entry["aliases"])}
    return MappingProxyType(shapes), MappingProxyType(names)


def _key(name: str) -> str:
    """One spelling for all: "meta-llama/Meta-Llama-3.1-8B-Instruct" -> "llama-3-1-8b"."""
    joined = re.sub(r"[\s_.:-]+", "-", name.rpartition("/")[2].lower()).strip("-").removeprefix("meta-")
    words = re.sub(r"(?<=[a-z])(?=\d)", "-", joined).split("-")  # "llama3" as "llama-3"
    return "-".join(word for word in words if word not in _TUNED)
