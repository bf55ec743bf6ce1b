"""What memory the system says is left."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("limit", "used", "room"), [("1000", "300", 700), ("max", "300", None), ("100", "300", 0)])
def test_control_group(tmp_path: Path, limit: str, used: str, room: int | None) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(used + "\n")
    assert memory._group_room(tmp_path) == room
    assert memory._group_room(tmp_path / "missing") is None
