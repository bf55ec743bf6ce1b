"""What `compare` keeps in the cache: listed with sizes, removed when somebody agrees."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import bitsmith
from bitsmith.comparison.cached import compare_folder, list_cached
from bitsmith.system.progress import Progress
from tests.cli.command import Command

WORDS: dict[str, Any] = {"context": 32, "max_windows": 2, "noise_floor": False, "layers": False, "generate": 0}


@pytest.mark.parametrize("target", ["q8_0", "gptq/int4"])
def test_a_damaged_file_of_the_cache_is_made_again(
    tiny: Path, prose: Path, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One byte in the weights: the file still opens."""
    first = bitsmith.compare(tiny, to=target, text=prose, **WORDS)
    path = max((compare_folder() / "made").rglob("*"), key=lambda each: each.stat().st_size)
    data = path.read_bytes()
    path.write_bytes(data[:-200] + bytes([data[-200] ^ 64]) + data[-199:])
    again = bitsmith.compare(tiny, to=target, text=prose, **WORDS)
    assert "is not as it was written" in caplog.text
    assert path.read_bytes() == data
    assert again.rows[0].sha256 == first.rows[0].sha256


def test_the_cache_is_listed_and_cleared(
    bitsmith_command: Command, tiny: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nothing is kept" in bitsmith_command("results", "--cache").out
    first = bitsmith.compare(tiny, to="q8_0,gptq/int4", text=prose, **WORDS)
    left = compare_folder() / "made" / ".work-left"
    left.mkdir()
    (left / "half").write_bytes(b"x" * 1000)
    shown = bitsmith_command("results", "--cache").out
    assert "q8_0" in shown
    assert "of tiny" in shown
    assert "predictions" in shown
    listed = json.loads(bitsmith_command("results", "--cache", "--json").out)
    assert [each["kind"] for each in listed if each["kind"] != "made"] == ["predictions"]
    assert sum(each["size"] for each in listed) == sum(
        path.stat().st_size for path in compare_folder().rglob("*") if path.is_file()
    )
    assert "give --yes" in bitsmith_command.fails(2, "results", "--clear-cache")
    assert len(list_cached()) == len(listed)
    monkeypatch.setattr("bitsmith.cli.stored.asked", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    refused = bitsmith_command("results", "--clear-cache")
    assert refused.code == 1
    assert "Nothing was removed" in refused.err
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert bitsmith_command("results", "--clear-cache").code == 0
    assert list_cached() == []
    assert "Nothing is kept" in bitsmith_command("results", "--clear-cache", "--yes").out
    again = bitsmith.compare(tiny, to="q8_0,gptq/int4", text=prose, **WORDS)
    assert [row.summary for row in again.rows] == [row.summary for row in first.rows]


def test_a_file_that_was_being_made_is_continued(tiny: Path, prose: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsmith.work import pace
    from bitsmith.work.leftovers import find_leftovers

    monkeypatch.setattr(pace, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(pace, "SHARE", 1e9)
    stages: list[str] = []

    def stopped(progress: Progress) -> None:
        stages.append(progress.stage)
        if stages.count("quantize") == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bitsmith.compare(tiny, to="q4_k_m", text=prose, report=stopped, **WORDS)
    folder = compare_folder() / "made"
    assert [each.kind for each in find_leftovers(folder)] == ["work"]
    whole = []
    again = bitsmith.compare(tiny, to="q4_k_m", text=prose, report=lambda progress: whole.append(progress), **WORDS)
    assert find_leftovers(folder) == []
    assert list(folder.glob(".work-*")) == []
    first = next(each for each in whole if each.stage == "quantize")
    assert first.done > 0
    assert again.failures == ()
