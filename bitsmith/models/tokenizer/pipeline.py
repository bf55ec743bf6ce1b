"""Which steps of a tokenizer.json take linear time and space on any text.

A pattern of a file can backtrack for hours, and steps that replace letters can double a text forty times. What is not
known here is run in a process with limits (`encode_task`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from bitsmith.models.tokenizer.pretokenizers import PRETOKENIZERS, spelled

_STEPS = frozenset(
    [
        *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Sequence"),  # normalizers
        *("ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"),  # pre-tokenizers
        *("ByteFallback", "Fuse"),  # decoders
    ]
)
_MOST_STEPS = 16
_MOST_GROWING = 2  # steps that make a text longer
_LONGEST_INSERTED = 8  # characters


def is_linear(tokenizer: Mapping[str, Any]) -> bool:
    """Whether encoding takes linear time and space.

    tokenizer: contents of a tokenizer.json
    """
    steps = [step for key in ("normalizer", "pre_tokenizer", "decoder") for step in _flat(tokenizer.get(key), 0)]
    growing = sum(step.get("type") in ("Prepend", "Replace") for step in _flat(tokenizer.get("normalizer"), 0))
    return len(steps) <= _MOST_STEPS and growing <= _MOST_GROWING and all(_is_linear_step(step) for step in steps)


def _flat(step: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """The steps inside a step. What is none gives an empty one, which is not linear."""
    if step is None:
        return
    if not isinstance(step, Mapping):
        yield {}
        return
    inner = next((step[key] for key in ("normalizers", "pretokenizers", "decoders") if key in step), None)
    if not isinstance(inner, list) or depth > 3:
        yield step
        return
    for each in inner:
        yield from _flat(each, depth + 1)


def _is_linear_step(step: Mapping[str, Any]) -> bool:
    kind, pattern = step.get("type"), step.get("pattern")
    if kind == "Prepend":
        return len(str(step.get("prepend"))) <= _LONGEST_INSERTED
    if kind == "Replace":
        return _literal(pattern) and len(str(step.get("content"))) <= _LONGEST_INSERTED
    if kind == "Split":
        regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
        return _literal(pattern) or (isinstance(regex, str) and spelled(regex) in _linear_patterns())
    return kind in _STEPS


def _literal(pattern: Any) -> bool:
    return isinstance(pattern, Mapping) and isinstance(pattern.get("String"), str) and bool(pattern["String"])


def looks_far_ahead(pattern: str) -> bool:
    """Whether a pattern of the table looks ahead over many characters at every position, which takes quadratic time."""
    return "(?=(" in pattern


@cache
def _linear_patterns() -> frozenset[str]:
    """The patterns of the table of pre-tokenizers, as `spelled`, but for those that look far ahead."""
    every = {split for row in PRETOKENIZERS for splits in (row.splits, *row.written) for split in splits}
    return frozenset(spelled(split) for split in {*every, r"[^\n]+|[\n]+"} if not looks_far_ahead(split))
