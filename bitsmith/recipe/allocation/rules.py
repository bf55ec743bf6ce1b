"""Rules for chosen types: few, and easy to read and to edit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bitsmith.recipe.allocation.units import BASE, Choice

_NUMBERED = re.compile(r"^(.*?\b(?:blk|layers|h)\.)(\d+)(\..*)$")


def rules_of(choices: Iterable[Choice]) -> tuple[str, ...]:
    """One rule for each kind of tensor and type: "^blk\\.(0|3|5)\\.attn_q\\.weight$=q4_k".

    Rules of tensors outside of blocks come first.
    """
    layers: dict[tuple[str, str, str], list[str]] = {}
    alone: list[str] = []
    for choice in (each for each in choices if each.type != BASE):
        for tensor in choice.tensors:
            match = _NUMBERED.match(tensor.info.name)
            if match is None:
                alone.append(f"^{re.escape(tensor.info.name)}$={choice.type}")
            else:
                layers.setdefault((match[1], _family(match[3]), choice.type), []).append(match[2])
    found = [
        f"^{re.escape(before)}({'|'.join(_ordered(numbers))}){after}$={type}"
        for (before, after, type), numbers in sorted(layers.items(), key=lambda each: (each[0][1], each[0][2]))
    ]
    return (*alone, *found)


def _family(after: str) -> str:
    """A pattern for what follows the number of the layer; all experts are alike."""
    return re.sub(r"(experts\\?\.)\d+", r"\1\\d+", re.escape(after))


def _ordered(numbers: Sequence[str]) -> list[str]:
    return sorted(set(numbers), key=int)
