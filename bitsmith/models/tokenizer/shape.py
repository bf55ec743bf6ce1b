"""Checks the shape of a tokenizer.json, so that its readers find objects, lists and texts where they look for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitsmith.errors import FileError

_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_INNER = ("normalizers", "pretokenizers", "processors", "decoders")
_DEEPEST = 8


def check_shape(tokenizer: Mapping[str, Any], path: Path) -> None:
    """Raise FileError, naming the place, if a part of a tokenizer.json is not of the kind that it must be."""
    for key in _STEPS:
        if tokenizer.get(key) is not None:
            _check_step(tokenizer[key], key, path, 1)
    model = tokenizer.get("model", {})
    _expect(isinstance(model, Mapping), "model", "an object", model, path)
    merges = model.get("merges", [])
    _expect(isinstance(merges, list), "model.merges", "a list", merges, path)
    added = tokenizer.get("added_tokens") or []
    _expect(isinstance(added, list), "added_tokens", "a list", added, path)


def _check_step(step: Any, where: str, path: Path, depth: int) -> None:
    _expect(isinstance(step, Mapping), where, "an object", step, path)
    _expect(depth <= _DEEPEST, where, f"at most {_DEEPEST} steps inside each other", "more", path)
    kind = step.get("type", "")
    _expect(isinstance(kind, str), f"{where}.type", "a text", kind, path)
    pattern = step.get("pattern", {})
    _expect(isinstance(pattern, Mapping | str), f"{where}.pattern", "an object", pattern, path)
    for key in _INNER:
        inner = step.get(key, [])
        _expect(isinstance(inner, list), f"{where}.{key}", "a list", inner, path)
        for number, each in enumerate(inner):
            _check_step(each, f"{where}.{key}[{number}]", path, depth + 1)
    single = step.get("single", [])
    if kind == "TemplateProcessing":
        _expect(isinstance(single, list), f"{where}.single", "a list", single, path)
        for entry in single:
            sound = isinstance(entry, Mapping) and bool(entry) and all(isinstance(e, Mapping) for e in entry.values())
            _expect(sound, f"{where}.single", "objects that hold an object each", entry, path)


def _expect(sound: bool, where: str, expected: str, found: Any, path: Path) -> None:
    if not sound:
        shown = f"{type(found).__name__}" if isinstance(found, list | Mapping) else f"{found!r:.60}"
        raise FileError(f"{path}: expected {where} to be {expected}, found {shown}; download it again")
