"""Paragraphs: what the tokens of a text belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.comparison.texts import open_domains, paragraph_starts
from bitsmith.errors import UsageError


@pytest.mark.parametrize("between", ["\n\n", "\n \n", "\n\n\n\n", " \n\t\n \n\n "])
def test_paragraphs_begin_behind_blank_lines(tiny: Path, between: str) -> None:
    """However many blank lines there are between two of them."""
    model = bitsmith.load(tiny)
    parts = ["The first one\nhas two lines.", "The second.", "And a third"]
    ids = np.array(model.tokenizer.encode(between.join(parts), add_special=False))
    starts = paragraph_starts(ids, model)
    assert len(starts) == 3
    for start, stop, part in zip(starts, [*starts[1:], len(ids)], parts, strict=True):
        assert model.tokenizer.decode(ids[start:stop].tolist()).strip() == part


def test_the_same_text_counts_once(prose: Path, other: Path) -> None:
    twin = prose.with_name("twin.txt")
    twin.write_bytes(prose.read_bytes())
    with pytest.raises(UsageError, match="second is the same text as first, and would count twice"):
        open_domains([f"first={prose}", other, f"second={twin}"])
