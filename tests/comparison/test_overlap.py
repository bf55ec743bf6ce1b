"""A text that was calibrated on is no text to measure on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitsmith.comparison.overlap import WORDS, check_overlap, shingles
from bitsmith.comparison.texts import open_domains
from bitsmith.errors import UsageError
from tests.cli.command import Command


def test_shingles_are_words_in_a_row() -> None:
    words = [f"w{number % 40}" for number in range(100)]
    hashes, count = shingles(words)
    assert (len(hashes), count) == (100 - WORDS + 1, 100)
    assert hashes[0] == hashes[40]
    assert len(np.unique(hashes)) == 40
    assert shingles(words[:12])[0].size == 0


def test_the_built_in_texts_share_nothing() -> None:
    assert check_overlap(open_domains([]), ["default", "self", "importance.gguf"]) == ()


def test_a_part_of_the_calibration_text_is_refused(prose: Path, other: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.txt"
    both.write_text(prose.read_text().upper() + "\n\n" + other.read_text())
    with pytest.raises(UsageError, match=r"the text prose cannot be measured on: 100\.0 % of it stands in"):
        check_overlap(open_domains([prose]), [both])
    assert check_overlap(open_domains([prose]), [other]) == ()


def test_a_quotation_is_a_note(prose: Path, other: Path) -> None:
    quotation = " ".join(prose.read_text().split()[100:116])
    other.write_text(other.read_text() + "\n\n" + quotation)
    (note,) = check_overlap(open_domains([prose]), [other])
    assert "% of the text prose stands in the calibration text" in note


def test_from_the_command_line(bitsmith_command: Command, tiny: Path, prose: Path) -> None:
    words = ("compare", tiny, "--to", "q8_0", "--text", prose, "-c", 32)
    assert "cannot be measured on" in bitsmith_command.fails(2, *words, "--calibration", prose)
    said = bitsmith_command.fails(2, *words, "--calibrated-on", prose)
    assert "cannot be measured on" in said
    assert "another --calibrated-on." in said
    assert "--calibrated-on" in bitsmith_command.fails(1, *words, "--calibrated-on", prose.with_name("none.txt"))
