"""Places of the outputs of a comparison: checked before anything is measured, named in messages and at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Command

FAST = ("--to", "q8_0", "--context", 32, "--max-windows", 2, "--no-noise-floor", "--no-layers", "--generate", 0, "-q")


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be opened or measured."""
    monkeypatch.setattr("bitsmith.comparison.running.run_comparison", None)


@pytest.mark.parametrize(
    ("option", "file", "named"),
    [
        ("--plots", "loss.svg", "."),
        ("--card", "README.md", "."),
        ("--write-logits", "base.kld", "base.kld"),
        ("--out", "table.csv", "table.csv"),
    ],
)
@pytest.mark.usefixtures("no_run")
def test_what_exists_is_found_before_the_run(
    bitsmith_command: Command, tmp_path: Path, option: str, file: str, named: str
) -> None:
    if option == "--plots":
        pytest.importorskip("vl_convert")
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / file).write_text("mine")
    said = bitsmith_command.fails(2, "compare", "reference", *FAST, option, folder / named)
    assert "exists already" in said
    assert said.rstrip().endswith(f"choose another {option}.")
    assert (folder / file).read_text() == "mine"


@pytest.mark.parametrize("option", ["--plots", "--card"])
@pytest.mark.usefixtures("no_run")
def test_a_file_where_a_folder_is_wanted(bitsmith_command: Command, tmp_path: Path, option: str) -> None:
    if option == "--plots":
        pytest.importorskip("vl_convert")
    (tmp_path / "plain").write_text("mine")
    said = bitsmith_command.fails(2, "compare", "reference", *FAST, option, tmp_path / "plain")
    assert option in said
    assert "it is a file, not a folder" in said


@pytest.mark.usefixtures("no_run")
def test_one_output_named_twice(bitsmith_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    words: tuple[Any, ...] = ("compare", "reference", *FAST, "-o", out)
    assert "is named by --out twice" in bitsmith_command.fails(2, *words, "-o", f"{tmp_path}/./r.csv")
    assert "by --out and --write-logits" in bitsmith_command.fails(2, *words, "--write-logits", out)


def test_every_file_that_was_written_is_named(
    bitsmith_command: Command, tiny: Path, prose: Path, tmp_path: Path
) -> None:
    out, logits = tmp_path / "r.csv", tmp_path / "base.kld"
    done = bitsmith_command("compare", tiny, "--text", prose, *FAST, "-o", out, "--write-logits", logits)
    assert done.code == 0, done.err
    for path in (out, logits):
        assert path.is_file()
        assert f"wrote {path}" in " ".join(done.err.split())


def test_another_csv_is_asked_for(bitsmith_command: Command, tiny: Path, prose: Path, tmp_path: Path) -> None:
    assert bitsmith_command("compare", tiny, "--text", prose, *FAST).code == 0
    (tmp_path / "kept.csv").write_text("mine")
    assert "choose another `--csv`." in bitsmith_command.fails(2, "results", "--csv", tmp_path / "kept.csv")
