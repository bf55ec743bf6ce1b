"""Shapes of well-known public models, by name. With them a plan needs no network.

For each model, `shapes.json` holds the fields of its published config.json that decide its size and its cache. They
keep their names, so the same code reads them and a user's config.json. "parameters" is the number of weights of the
language model: tied weights count once, vision towers and heads that only draft tokens do not count. "active" is the
number of weights that one token uses, as published for mixtures of experts.

Names without a generation: "llama-7b", "llama-13b", "llama-30b" and "llama-65b" are Llama 1. "llama-8b", "llama-70b"
and the sizes that only Llama 3 has are the newest Llama 3 (aliases of 3.1 or 3.2).
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

NEAR_TIE = 0.1  # difference of logarithms of two counts that counts as a tie
_TUNED = {"base", "chat", "hf", "instruct", "it", "pt"}  # words in names that do not change the shape


@dataclass(frozen=True)
class KnownShape:
    """A public model's shape.

    name: name that plans print
    source: where the fields were published
    parameters: number of all weights
    active: number of weights that one token uses in a mixture of experts; None for a dense model
    config: fields of config.json
    """

    name: str
    source: str
    parameters: int
    active: int | None
    config: Mapping[str, Any]


def known_shapes() -> Mapping[str, KnownShape]:
    """Every known shape by its name, without aliases."""
    return _tables()[0]


def find_shape(name: str) -> KnownShape | None:
    """The shape with this name, or None.

    Case, owner ("meta-llama/"), separators and words like "Instruct" do not matter: "Meta-Llama-3-8B", "llama3-8b"
    and "Llama 3 8B" are the same.
    """
    shapes, names = _tables()
    known = names.get(_key(name))
    return None if known is None else shapes[known]


def near_names(name: str) -> list[str]:
    """Up to four names of known shapes that resemble `name`, the nearest first."""
    names = _tables()[1]
    close = difflib.get_close_matches(_key(name), names, n=8)
    return list(dict.fromkeys(names[key] for key in close))[:4]


def nearest_by_count(parameters: int) -> KnownShape:
    """The dense shape whose number of weights is nearest to `parameters`, by ratio.

    Ties go to the Llama architecture first (see NEAR_TIE), then to the longer context. Raises UsageError for a count
    below 1.
    """
    if parameters < 1:
        raise UsageError(f"a model has at least one parameter, got {parameters}.")
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
    """The shapes by name, and the name for each key that `_key` gives."""
    entries = json.loads(Path(__file__).with_name("shapes.json").read_text(encoding="utf-8"))
    shapes = {
        name: KnownShape(name, entry["source"], entry["parameters"], entry["active"], MappingProxyType(entry["config"]))
        for name, entry in entries.items()
    }
    names = {_key(spelling): name for name, entry in entries.items() for spelling in (name, *entry["aliases"])}
    return MappingProxyType(shapes), MappingProxyType(names)


def _key(name: str) -> str:
    """One key for all spellings of a name: "meta-llama/Meta-Llama-3.1-8B-Instruct" -> "llama-3-1-8b"."""
    joined = re.sub(r"[\s_.:-]+", "-", name.rpartition("/")[2].lower()).strip("-").removeprefix("meta-")
    words = re.sub(r"(?<=[a-z])(?=\d)", "-", joined).split("-")  # "llama3" as "llama-3"
    return "-".join(word for word in words if word not in _TUNED)
