"""A short run of `make fuzz` with fixed numbers, and the watchdog itself."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import Command
from tests.fuzz import mutate
from tests.fuzz.cases import Case, commands
from tests.fuzz.worker import run_case

ROOT = Path(__file__).parents[2]


def test_a_few_cases_all_end_well(tmp_path: Path) -> None:
    words = ["--seconds", "600", "--cases", "16", "--first", "100", "--jobs", "1", "--most-seconds", "120"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *words], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "16 cases" in done.stdout
    assert ": 0 failures" in done.stdout


@pytest.mark.parametrize("number", range(12))
def test_the_commands_work_on_a_sound_model(
    bitsmith_command: Command, monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path, number: int
) -> None:
    """If an option has another name now, the cases would test nothing."""
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    result = bitsmith_command(*commands(tiny, tmp_path, "q8_0")[number])
    assert result.code == 0, result


def test_a_traceback_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> None:
        print("\x1b[31m")
        raise ZeroDivisionError

    case = Case(0, ("inspect", "x"), "", tmp_path)
    monkeypatch.setattr("tests.fuzz.worker.main", broken)
    assert "ZeroDivisionError" in run_case(case)
    monkeypatch.setattr("tests.fuzz.worker.main", lambda: print("\x1b[31m"))
    assert "orders to the terminal" in run_case(case)
    monkeypatch.setattr("tests.fuzz.worker.main", lambda: sys.exit(1))
    assert "without a word" in run_case(case)
    monkeypatch.setattr("tests.fuzz.worker.main", lambda: sys.exit(0))
    assert run_case(case) == ""


def test_the_same_number_gives_the_same_change() -> None:
    data = mutate.dump({"a": {"b": [1, 2, "x"]}, "c": None})
    once = [mutate.json_file(data, random.Random(number)) for number in range(50)]
    assert once == [mutate.json_file(data, random.Random(number)) for number in range(50)]
    assert len(set(once)) > 30
