"""A text that was calibrated on is no text to measure on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
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
    assert shingles(words[:12])[0].size == 1
    assert shingles(words[:3])[0].size == 0


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


def test_short_records_are_compared_whole(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    records = [f'{{"text": "What is {number} and {number + 1}?"}}\n' for number in range(50)]
    first.write_text("".join(records))
    second.write_text("".join(reversed(records)))
    with pytest.raises(UsageError, match=r"100\.0 % of it stands in"):
        check_overlap(open_domains([first]), [second])


def test_chinese_characters_are_words(tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    text = "".join(chr(0x4E00 + 7 * number) for number in range(200))
    first.write_text(text, encoding="utf-8")
    second.write_text("\u554f" + text, encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be measured on"):
        check_overlap(open_domains([first]), [second])


def test_what_cannot_be_checked_is_said(tmp_path: Path, other: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Two words")
    (note,) = check_overlap(open_domains([short]), [other])
    assert "could not be checked: short has no 4 words in a row" in note


def test_the_windows_that_are_scored_count(
    bitsmith_command: Command, tiny: Path, prose: Path, other: Path, tmp_path: Path
) -> None:
    """A small part of the text was calibrated on, and that is what is measured."""
    start, long = tmp_path / "start.txt", tmp_path / "long.txt"
    start.write_text(prose.read_text()[:500])
    long.write_text(prose.read_text()[:500] + "\n\n" + 12 * other.read_text())
    assert check_overlap(open_domains([long]), [start]) != ()
    words = ("compare", tiny, "--to", "q8_0", "--text", long, "-c", 32, "--calibrated-on", start)
    assert "cannot be measured on" in bitsmith_command.fails(2, *words, "--max-windows", 4)


def test_what_a_file_was_calibrated_on_is_checked(
    tiny: Path, prose: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe has the name of the text: it is checked if it is there, else a note asks for it."""
    made, plain = tmp_path / "made.gguf", tmp_path / "plain.gguf"
    bitsmith.quantize(tiny, to="q4_k_m", out=made, calibration=other, calibration_context=32)
    bitsmith.quantize(tiny, to="q4_0", out=plain)
    words: dict[str, Any] = {"context": 32, "max_windows": 2, "noise_floor": False, "layers": False, "generate": 0}
    found = bitsmith.compare(tiny, [made, plain], text=prose, **words)
    note = "made was calibrated on other.txt; this text was not checked against it, give `--calibrated-on`"
    assert [each for each in found.notes if "calibrated on" in each] == [note]
    assert note not in bitsmith.compare(tiny, made, text=prose, calibrated_on=str(other), **words).notes
    monkeypatch.chdir(tmp_path)
    assert note not in bitsmith.compare(tiny, made, text=prose, **words).notes
    refused = bitsmith.compare(tiny, [made, plain], text=other, **words)
    assert [row.name for row in refused.rows] == ["plain"]
    assert "cannot be measured on" in refused.failures[0].reason


def test_from_the_command_line(bitsmith_command: Command, tiny: Path, prose: Path) -> None:
    words = ("compare", tiny, "--to", "q8_0", "--text", prose, "-c", 32)
    assert "cannot be measured on" in bitsmith_command.fails(2, *words, "--calibration", prose)
    said = bitsmith_command.fails(2, *words, "--calibrated-on", prose)
    assert "cannot be measured on" in said
    assert "another --calibrated-on." in said
    assert "--calibrated-on" in bitsmith_command.fails(1, *words, "--calibrated-on", prose.with_name("none.txt"))
