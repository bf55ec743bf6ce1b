"""Limits of control groups in both versions, for the group itself and its parents; page cache is not used memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitsmith.system import machine
from bitsmith.system.control_group import memory_room, processors

_V1 = 9223372036854771712  # no limit


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n")
    return root


def own(root: Path, *lines: str) -> Path:
    (root / "own").write_text("".join(f"{line}\n" for line in lines))
    return root / "own"


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({"memory.max": 1000, "memory.current": 300}, 700),
        ({"memory.max": "max", "memory.current": 300}, None),
        ({"memory.max": 100, "memory.current": 300}, 0),
        ({"memory.max": 0, "memory.current": 0}, 0),
        ({"memory.max": 1000, "memory.current": 900, "memory.stat": "anon 200\ninactive_file 650\nfile 700"}, 750),
        ({"memory.max": 1000, "memory.current": 900, "memory.stat": "inactive_file 5000"}, 1000),
        ({"memory.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_memory_of_version_2(tmp_path: Path, files: dict[str, object], room: int | None) -> None:
    assert memory_room(tree(tmp_path, files), tmp_path / "missing") == room


def test_the_smallest_of_the_group_and_its_parents(tmp_path: Path) -> None:
    files = {"a/memory.max": 500, "a/memory.current": 100, "a/b/memory.max": 1000, "a/b/memory.current": 100}
    assert memory_room(tree(tmp_path, files), own(tmp_path, "0::/a/b")) == 400
    assert memory_room(tmp_path, own(tmp_path, "0::/not/visible/here")) is None


def test_memory_of_version_1(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "memory/memory.limit_in_bytes": _V1,
        "memory/memory.usage_in_bytes": 5000,
        "memory/docker/x/memory.limit_in_bytes": 1000,
        "memory/docker/x/memory.usage_in_bytes": 900,
        "memory/docker/x/memory.stat": "cache 700\ninactive_file 1\ntotal_inactive_file 600",
    }
    tree(tmp_path, files)
    assert memory_room(tmp_path, own(tmp_path, "7:cpu,cpuacct:/docker/x", "4:memory:/docker/x")) == 700
    assert memory_room(tmp_path, own(tmp_path, "4:memory:/other")) is None


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"a/cpu.max": "300000 100000", "cpu.max": "max 100000"}, 3),
        ({"cpu/a/cpu.cfs_quota_us": 400000, "cpu/a/cpu.cfs_period_us": 100000}, 4),
        ({"cpu/a/cpu.cfs_quota_us": -1, "cpu/a/cpu.cfs_period_us": 100000}, None),
        ({"cpu.max": ""}, None),
        ({}, None),
    ],
)
def test_processors(tmp_path: Path, files: dict[str, object], count: int | None) -> None:
    assert processors(tree(tmp_path, files), own(tmp_path, "3:cpu,cpuacct:/a", "0::/a")) == count


def test_a_quota_bounds_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    for quota, expected in ((None, 16), (3, 3), (64, 16)):
        monkeypatch.setattr(machine, "processors", lambda quota=quota: quota)
        assert machine.cores() == expected
