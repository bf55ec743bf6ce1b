"""Numbers as a person reads them, and names as a file gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitsmith.cli.drawing import human_bytes, human_seconds, plain_table
from tests.cli.command import Command
from tests.tiny import make_folder


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (5_370_000, "5.37 MB"), (4.9e9, "4.9 GB"), (1.234e12, "1.234 TB")],
)
def test_bytes(count: float, expected: str) -> None:
    assert human_bytes(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.44, "0.4 s"), (75.2, "75 s"), (720, "12 min"), (7500, "2 h 05 min")],
)
def test_seconds(seconds: float, expected: str) -> None:
    assert human_seconds(seconds) == expected


def test_names_in_a_file_are_neither_markup_nor_orders_to_the_terminal(
    bitsmith_command: Command, tmp_path: Path
) -> None:
    tensors = {name: np.ones((4, 64), np.float32) for name in ("[/bold]", "[red]a", "\x1b[2Jb")}
    folder = make_folder(tmp_path / "odd", tensors=tensors, model_type="odd", architectures=["Odd"])
    for words in (("quantize", folder, "--to", "native/int8", "--dry-run"), ("inspect", folder)):
        result = bitsmith_command(*words)
        assert result.code == 0, result
        assert all(shown in result.out for shown in ("[/bold]", "[red]a", "\\x1b[2Jb"))
        assert "\x1b" not in result.out


def test_a_plain_table_is_aligned_and_bounded() -> None:
    rows = [("a\x1b[31m", "1,000", "x"), ("name" * 100, "7", "")]
    lines = plain_table(("tensor", "bytes", "why"), rows, right=("bytes",)).split("\n")
    assert lines[0] == f"{'tensor':<120}  bytes  why"
    assert lines[1] == f"{'a' + chr(92) + 'x1b[31m':<120}  1,000  x"
    assert lines[2].endswith("...      7")
    assert len(lines[2]) == 127
    assert plain_table(("a", "b"), []) == "a  b"
