"""What memory the system says is left."""

from __future__ import annotations

from pathlib import Path

from bitsmith.system import memory


def test_here() -> None:
    available = memory.available_memory()
    assert available is None or available > 1 << 20


def test_meminfo(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       100 kB\nMemAvailable:     40 kB\n")
    assert memory._meminfo(path) == 40 * 1024
    path.write_text("MemTotal: 100 kB\n")
    assert memory._meminfo(path) is None
    assert memory._meminfo(tmp_path / "missing") is None


def test_the_peak_of_a_block() -> None:
    with memory.OwnMemoryPeak() as peak:
        held = bytearray(1 << 26)
        held[:: 1 << 12] = b"x" * (1 << 14)
        seen = peak.bytes
        del held
    assert 1 << 26 <= seen < 1 << 27
    assert peak.bytes >= seen
