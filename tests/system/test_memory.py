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
