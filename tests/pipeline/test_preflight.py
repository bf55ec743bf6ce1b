"""Predictions before a run, refusals with offers, corrections after the first block, and memory that runs out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import bitsmith
from bitsmith.calibration import need as calibration_need
from bitsmith.calibration.need import Need
from bitsmith.errors import ResourceError
from bitsmith.pipeline import course, preflight, quantization
from bitsmith.pipeline.course import Course
from bitsmith.pipeline.outputs import Output
from bitsmith.pipeline.phases import Phase, phases_of
from bitsmith.system.pressure import MemoryNow, Room, memory_now
from bitsmith.system.progress import Progress, silent

CALIBRATED = {"to": "gptq/int4", "group_size": 32, "method": "gptq", "calibration_tokens": 4096}


def only(monkeypatch: pytest.MonkeyPatch, room: int, *, address: bool = False) -> None:
    """Let `room` bytes be free."""
    for module in (preflight, calibration_need):
        monkeypatch.setattr(module, "rooms", lambda: (Room(room, "free", address),))


def test_a_plan_says_the_peak(tiny: Path, tmp_path: Path) -> None:
    planned = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "x.gguf", dry_run=True)
    assert planned.expected_memory > 1_000_000
    said = planned.to_dict()
    assert said["expected_memory_bytes"] == planned.expected_memory
    assert said["expected_disk_bytes"] == planned.size


def test_a_calibrated_plan_takes_more(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(preflight, "memory_now", lambda: MemoryNow(50 << 20, 60 << 20, 150 << 20))
    few, many = (
        bitsmith.quantize(tiny, out=tmp_path / "x", dry_run=True, **{**CALIBRATED, "calibration_tokens": tokens})
        for tokens in (4096, 16384)
    )
    assert many.expected_memory > few.expected_memory


def test_a_run_that_does_not_fit_is_refused_with_offers(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "x"
    plan = bitsmith.quantize(tiny, out=out, dry_run=True, **CALIBRATED)
    need = []
    monkeypatch.setattr(preflight, "refusal", lambda *args: need.append(args) or "no")
    only(monkeypatch, 0)
    with pytest.raises(ResourceError, match="no"):
        bitsmith.quantize(tiny, out=out, **CALIBRATED)
    monkeypatch.undo()
    _, found, (_, more) = need[0]
    assert more == found.peak - found.now.resident
    assert plan.expected_memory > 0
    only(monkeypatch, more - 1)
    with pytest.raises(ResourceError, match=r"but only .* are free") as refused:
        bitsmith.quantize(tiny, out=out, **CALIBRATED)
    said = refused.value.flags
    for offer in ("--memory", "--calibration-tokens 2048", "--effort fast", "--method nearest", "--force starts"):
        assert offer in said
    assert not out.exists()
    assert "peak" in said


def test_what_is_offered_fits(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    seen = []
    monkeypatch.setattr(preflight, "refusal", lambda outputs, need, found: seen.append((outputs, found)) or "no")
    only(monkeypatch, 0)
    with pytest.raises(ResourceError):
        bitsmith.quantize(tiny, out=tmp_path / "x", **CALIBRATED)
    monkeypatch.undo()
    outputs, (_, more) = seen[0]
    only(monkeypatch, more - 1)
    assert preflight.need_of(outputs, 1, preflight.Change(memory=0)).missing() is None
    assert preflight.need_of(outputs, 1, preflight.Change(method="nearest")).missing() is None
    only(monkeypatch, 0)
    offered = preflight.offers(outputs, preflight.need_of(outputs, 1))
    assert offered.startswith("No options of this run make it fit")


def test_force_starts_all_the_same(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 0)
    out = tmp_path / "x.gguf"
    with pytest.raises(ResourceError):
        bitsmith.quantize(tiny, to="q8_0", out=out)
    assert not out.exists()
    assert bitsmith.quantize(tiny, to="q8_0", out=out, force=True).out == out


def test_a_dry_run_says_that_it_would_not_start(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 0)
    planned = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "x.gguf", dry_run=True)
    assert any("it would not start" in note for note in planned.notes)


def test_addresses_count_more_than_memory() -> None:
    now = MemoryNow(50 << 20, 50 << 20, 150 << 20)
    need = Need(60 << 20, 0, 2, now)
    assert need.more(Room(0, "free")) == 10 << 20
    assert need.more(Room(0, "left under ulimit -v", address=True)) > 300 << 20


def test_a_peak_before_the_run_is_no_need_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "memory_now", lambda: MemoryNow(100, 900, 0))
    only(monkeypatch, 30)
    run = Course(silent, Need(120, 0, 1, MemoryNow(50, 900, 0)), lambda need, found: "no")
    run(blocks(0))
    run(blocks(1))
    assert run.corrected["gptq"].memory == 120


def blocks(done: int) -> Progress:
    return Progress("gptq", done, 4, "blocks", f"block {done}")


def test_the_first_block_corrects(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.0, 105.0, 108.0])
    monkeypatch.setattr(course.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(course, "memory_now", lambda: MemoryNow(100, 170, 0))
    only(monkeypatch, 70)
    told: list[Progress] = []
    run = Course(told.append, Need(120, 0, 1, MemoryNow(50, 50, 0)), lambda need, found: "no")
    run(blocks(0))
    run(blocks(1))
    assert run.corrected["gptq"].seconds == 12.0
    assert run.corrected["gptq"].memory == 170
    run(blocks(2))
    assert run.corrected["gptq"].seconds == 9.0  # the first block also warmed up
    run(blocks(3))
    assert run.corrected["gptq"].seconds == 9.0
    assert [each.detail for each in told] == [
        *("block 0", "block 1, 9.0 s left", "block 2, 4.0 s left", "block 3, 2.5 s left")
    ]


def test_the_time_left_is_that_of_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two stages the second is expected to take one and a half times as long as the first."""
    clock = iter([100.0, 102.0, 104.0, 108.0, 110.0, 113.0])
    monkeypatch.setattr(course.time, "monotonic", lambda: next(clock))
    only(monkeypatch, 1 << 40)
    told: list[Progress] = []
    phases = (Phase("calibrate", 20.0), Phase("gptq", 30.0))
    run = Course(told.append, Need(120, 0, 1, memory_now()), lambda need, found: "no", phases=phases)
    for done in (0, 1, 2, 4):
        run(Progress("calibrate", done, 4, "blocks"))
    for done in (0, 1):
        run(blocks(done))
    assert [each.left for each in told] == [None, 6.0 + 12.0, 4.0 + 12.0, None, None, 9.0]
    assert [each.detail for each in told][1:3] == ["18 s left in all", "16 s left in all"]
    assert told[-1].detail == "block 1, 9.0 s left"


@pytest.mark.parametrize(
    ("method", "to", "stages"),
    [
        ("gptq", "gptq/int4", ["gptq"]),
        ("awq+gptq", "gptq/int4", ["calibrate", "gptq"]),
        ("awq", "gptq/int4", ["calibrate", "nearest"]),
        ("nearest", "gptq/int4", []),
    ],
)
def test_the_phases_are_the_stages_that_a_run_reports(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, to: str, stages: list[str]
) -> None:
    pytest.importorskip("torch")
    known: list[str] = []

    def kept(outputs: Sequence[Output], threads: int) -> tuple[Phase, ...]:
        found = phases_of(outputs, threads)
        assert all(phase.seconds > 0 for phase in found)
        known.extend(phase.stage for phase in found)
        return found

    monkeypatch.setattr(quantization, "phases_of", kept)
    reported: list[Progress] = []
    words = {**CALIBRATED, "to": to, "method": method, "calibration_tokens": 256, "calibration_context": 64}
    words["calibration"] = "default"
    bitsmith.quantize(tiny, out=tmp_path / "x", report=reported.append, **words)
    assert known == stages
    seen = dict.fromkeys(each.stage for each in reported if each.unit == "blocks")
    assert [stage for stage in seen if stage in stages] == stages


def test_a_stage_that_begins_again_is_that_of_the_next_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "memory_now", lambda: MemoryNow(100, 170, 0))
    only(monkeypatch, 70)
    run = Course(silent, Need(120, 0, 1, MemoryNow(50, 50, 0)), lambda need, found: "no")
    for done in (0, 1, 2, 3, 4):
        run(blocks(done))
    run(blocks(0))
    assert "gptq" not in run.corrected
    run(blocks(1))
    assert run.corrected["gptq"].memory == 170


def test_the_first_block_ends_a_run_that_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "memory_now", lambda: MemoryNow(100, 170, 0))
    only(monkeypatch, 69)
    need = Need(120, 0, 1, MemoryNow(50, 50, 0))
    run = Course(silent, need, lambda need, found: f"takes {found[1]} of {found[0].nbytes}")
    run(blocks(0))
    with pytest.raises(ResourceError, match="after the first block of 'gptq': takes 70 of 69"):
        run(blocks(1))
    forced = Course(silent, need, lambda need, found: "no", force=True)
    for done in range(3):
        forced(blocks(done))


def test_a_run_that_runs_out_names_the_step(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsmith.pipeline import executor

    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(executor, "encode_chunk", fail)
    out = tmp_path / "x.gguf"
    with pytest.raises(ResourceError, match="memory ran out in the start; bitsmith had"):
        bitsmith.quantize(tiny, to="q8_0", out=out)
    assert list(tmp_path.iterdir()) == [tiny]


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v")
def test_a_limit_on_addresses_is_seen(tiny: Path, tmp_path: Path) -> None:
    """Under a limit that a calibrated run does not keep it is refused before any work, and nothing is left."""
    pytest.importorskip("torch")
    code = (
        "import resource, sys, bitsmith\n"
        "from bitsmith.system.pressure import memory_now\n"
        f"words = dict(out={str(tmp_path / 'x')!r}, threads=4, **{CALIBRATED!r})\n"
        f"bitsmith.quantize({str(tiny)!r}, dry_run=True, **words)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (memory_now().address + (150 << 20),) * 2)\n"
        f"try:\n    bitsmith.quantize({str(tiny)!r}, **words)\n"
        "except bitsmith.BitsmithError as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ResourceError")
    assert "left under ulimit -v" in done.stdout
    assert list(tmp_path.iterdir()) == [tiny]


def test_json_has_the_prediction(bitsmith_command, tiny: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("quantize", tiny, "--to", "q8_0", "--out", tmp_path / "x.gguf", "--dry-run")
    said = json.loads(bitsmith_command(*words, "--json").out)
    assert said["expected_memory_bytes"] > 0
    assert "of memory" in bitsmith_command(*words).out


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("to", ["q4_k_m", "native/int4"])
def test_the_peak_of_a_plain_run_is_what_was_said(to: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bitsmith", "quantize", "reference", "--to", to, "--json", "--quiet"]
    done = subprocess.run([*words, "--out", str(tmp_path / "x")], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["expected_memory_bytes"] == pytest.approx(said["peak_memory_bytes"], rel=0.15)


def test_imatrix_is_refused_with_offers(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "x.gguf"
    only(monkeypatch, 0)
    with pytest.raises(ResourceError, match="No options of this run make it fit"):
        bitsmith.imatrix(tiny, out=out, calibration_tokens=16384)
    seen: list[int] = []
    asked = calibration_need.need_of_pass

    def noted(*words: object) -> Need:
        seen.append(asked(*words).peak)  # type: ignore[arg-type]
        return asked(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(calibration_need, "need_of_pass", noted)
    only(monkeypatch, 1)
    with pytest.raises(ResourceError):
        bitsmith.imatrix(tiny, out=out, calibration_tokens=16384)
    only(monkeypatch, seen[0] - memory_now().resident - 1_000_000)  # a little too small for all tokens
    with pytest.raises(ResourceError, match=r"memory=1MB|calibration_tokens=8192") as refused:
        bitsmith.imatrix(tiny, out=out, calibration_tokens=16384)
    assert "--force starts it" in refused.value.flags
    assert not out.exists()
    bitsmith.imatrix(tiny, out=out, calibration_tokens=2048, force=True)
    assert out.exists()
