"""Long work off a terminal: lines of progress, the log, the expected time, what is finished when it is interrupted."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import bitsmith
from bitsmith.cli import progress_lines
from bitsmith.cli.progress_lines import ProgressLines
from bitsmith.errors import Words
from bitsmith.pipeline import making, outputs
from bitsmith.pipeline.estimate import with_long_note
from bitsmith.pipeline.result import Quantized
from bitsmith.system.progress import Progress
from tests.cli.command import Command


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_end_of_a_stage_is_told_once() -> None:
    clock, written = Clock(), list[str]()
    lines = ProgressLines(written.append, clock)
    lines(Progress("verify", 5, 5, "B"))
    for second in range(100):
        clock.now = 100.0 + second
        lines.tick()
    assert [line.partition(",")[0] for line in written] == ["verify: 100 %"]
    lines(Progress("hash", 1, 5, "B"))
    clock.now += 100
    lines.tick()
    assert len(written) == 2


def test_lines_come_after_five_seconds_and_then_more_rarely() -> None:
    clock, written = Clock(), []
    lines = ProgressLines(lambda line: written.append((clock.now - 100, line)), clock)
    for second in range(200):
        clock.now = 100.0 + second
        lines(Progress("quantize", 10 * second, 4000, "windows"))
    assert [at for at, _ in written] == [5, 15, 30, 50, 80, 110, 140, 170]
    assert written[0][1] == "quantize: 1 %, 50 of 4000 windows, about 7 min left\n"


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress("load", 0, 0, "B"), "load:"),
        (Progress("gptq", 3, 24, "blocks", "block 3"), "gptq: 12 %, 3 of 24 blocks, block 3"),
        (Progress("verify", 5 * 10**8, 10**9, "B"), "verify: 50 %, 500 MB of 1 GB"),
        (Progress("quantize", 10**9, 4 * 10**9, "weights"), "quantize: 25 %, 1.00 of 4.00 G weights"),
    ],
)
def test_a_line(progress: Progress, line: str) -> None:
    assert ProgressLines(print, Clock()).line(progress) == line


def test_the_time_left_that_a_run_knows_is_told() -> None:
    clock, written = Clock(), list[str]()
    lines = ProgressLines(written.append, clock)
    lines(Progress("calibrate", 0, 4, "blocks"))
    clock.now += 10
    lines(Progress("calibrate", 1, 4, "blocks", left=75.0))
    clock.now += 10
    lines.tick()
    assert [line.rpartition(", ")[2] for line in written] == ["about 75 s left\n", "about 65 s left\n"]


def test_stages_that_take_turns_keep_their_time_left() -> None:
    clock, written = Clock(), []
    lines = ProgressLines(written.append, clock)
    for block in range(6):
        lines(Progress("gptq", block, 24, "blocks"))
        lines(Progress("run", 0, 4, "windows"))
        lines(Progress("run", 4, 4, "windows"))
        clock.now += 5
    assert any(line.startswith("gptq:") and line.endswith("left\n") for line in written)


@pytest.mark.parametrize("into", [0.0, 30.0, 59.0, 75.0])
def test_the_time_left_is_right_within_a_step(into: float) -> None:
    """Blocks of a minute each: a line in the middle of a block counts what the block has taken already."""
    clock = Clock()
    lines = ProgressLines(lambda line: None, clock)
    for block in range(3):
        clock.now = 100.0 + 60 * block
        lines(Progress("gptq", block, 30, "blocks"))
    clock.now += into
    left = lines._left(Progress("gptq", 2, 30, "blocks"))
    assert left == pytest.approx(max(28 * 60 - into, 27 * 60))


def test_a_long_step_is_shown_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step reports once; the line comes from the watching thread."""
    seen = threading.Event()
    monkeypatch.setattr(progress_lines, "FIRST", 0.01)
    monkeypatch.setattr(progress_lines, "_to_stderr", lambda line: seen.set())
    with progress_lines.progress_lines() as report:
        report(Progress("gptq", 1, 24, "blocks"))
        assert seen.wait(20)


def test_nothing_short_writes_lines_and_quiet_none(
    bitsmith_command: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("quantize", tiny, "--to", "q8_0", "--force", "--out", tmp_path / "x.gguf")
    monkeypatch.setattr(progress_lines, "FIRST", 1e9)  # whatever the machine, this is shorter
    assert "quantize:" not in bitsmith_command(*words).err
    monkeypatch.setattr(progress_lines, "FIRST", -1.0)
    assert "quantize:" in bitsmith_command(*words).err
    assert "quantize:" not in bitsmith_command(*words, "--quiet").err


def test_the_log(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    words = ("quantize", tiny, "--to", "q8_0", "--force", "--out", tmp_path / "x.gguf")
    try:
        done = bitsmith_command(*words, "--log-level", "info")
        assert "INFO bitsmith.pipeline.quantization: plan of gguf/q8_0: nearest" in done.err
        assert "INFO bitsmith.pipeline.making: wrote " in done.err
        assert "INFO" not in bitsmith_command("--log-level=error", *words).err
        assert "--log-level loud: unknown; expected debug, info" in bitsmith_command.fails(
            2, *words, "--log-level", "loud"
        )
    finally:
        logger = logging.getLogger("bitsmith")
        logger.handlers[:] = [each for each in logger.handlers if isinstance(each, logging.NullHandler)]
        logger.setLevel(logging.NOTSET)


def test_the_library_is_silent(tiny: Path, tmp_path: Path) -> None:
    code = f"import bitsmith; bitsmith.quantize({str(tiny)!r}, to='q8_0', out={str(tmp_path / 'x.gguf')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def planned(tiny: Path, tmp_path: Path, seconds: float, fast: float | None) -> Quantized:
    from dataclasses import replace

    found = bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "x.gguf", dry_run=True)
    return replace(found, expected_seconds=seconds, fast_seconds=fast)


def test_long_runs_name_a_cheaper_choice(tiny: Path, tmp_path: Path) -> None:
    short = planned(tiny, tmp_path, 300.0, None)
    assert with_long_note([short]) == [short]
    both = with_long_note([short, planned(tiny, tmp_path, 2400.0, 60.0)])
    assert both[0].notes == ('this takes about 45 min; with effort="fast" it takes about 6 min and loses more',)
    assert isinstance(both[0].notes[0], Words)
    assert with_long_note([planned(tiny, tmp_path, 9000.0, None)])[0].notes == ("this takes about 2 h 30 min",)


def test_the_command_warns_of_a_long_run(
    bitsmith_command: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "LONG_SECONDS", 0.0)
    monkeypatch.setattr("bitsmith.pipeline.estimate.LONG_SECONDS", 0.0)
    words = ("quantize", tiny, "--to", "q4_0", "--dry-run", "--out", tmp_path / "x.gguf")
    done = bitsmith_command(*words, "--effort", "high")
    assert "Warning: this takes about" in done.err
    assert "with --effort fast it takes about" in done.err
    told = json.loads(bitsmith_command(*words, "--effort", "high", "--json").out)
    assert "with --effort fast it takes" in told["notes"][0]


def test_imatrix_tells_its_time_before_it_starts(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    words = ("--calibration-tokens", 640, "--calibration-context", 64, "--memory", "10kB")
    done = bitsmith_command("imatrix", tiny, "--out", tmp_path / "x.gguf", *words)
    assert "640 tokens of pydoc_data.topics" in done.err
    assert "of memory beside torch and 164 kB of disk for temporary files" in done.err


def test_an_interruption_names_what_is_finished(
    bitsmith_command: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = making._Making.nearest
    words = ("quantize", tiny, "--to", "q8_0", "--to", "q4_0", "--to", "f16", "--out", tmp_path / "made")

    def interrupted(self: making._Making) -> making.Made:
        if self.output.assignment.target.name == "q4_0":
            raise KeyboardInterrupt
        return made(self)

    monkeypatch.setattr(making._Making, "nearest", interrupted)
    done = bitsmith_command(*words)
    assert done.code == 130
    said = " ".join(done.err.split())
    assert f"Interrupted; 1 of 3 outputs are finished ({tmp_path}/made/tiny-Q8_0.gguf); of the others no" in said
    assert "; what was done is kept in " in said
    assert done.out.count("wrote ") == 1
    shown = [path.name for path in (tmp_path / "made").iterdir() if not path.name.startswith(".")]
    assert shown == ["tiny-Q8_0.gguf"]
