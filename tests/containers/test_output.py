"""OutputFiles: whole under the final name, or not there at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bitsmith.containers import output
from bitsmith.containers.layout import FileLayout, Region
from bitsmith.containers.output import OutputFiles
from bitsmith.errors import FileError, UsageError

LAYOUT = FileLayout("model.bin", b"HEAD", (Region("a", "data", 8, 4), Region("b", "data", 16, 4)), 20)
FINAL = FileLayout("model.bin", b"head", LAYOUT.regions, 20)


def write_all(files: OutputFiles) -> None:
    files.write("a", "data", memoryview(b"12"))
    files.write("b", "data", memoryview(b"5678"))
    files.write("a", "data", memoryview(b"34"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_committed_file_is_whole(tmp_path: Path) -> None:
    with OutputFiles(tmp_path / "model.bin", [LAYOUT]) as files:
        write_all(files)
        assert "model.bin" not in names(tmp_path)
        files.commit([FINAL])
    assert (tmp_path / "model.bin").read_bytes() == b"head\0\0\0\x001234\0\0\0\x005678"
    assert names(tmp_path) == ["model.bin"]


def test_leaving_early_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OutputFiles(tmp_path / "model.bin", [LAYOUT]) as files:
        files.write("a", "data", memoryview(b"1234"))
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_folder_appears_at_once_with_its_extras(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with OutputFiles(target, [LAYOUT], extras={"config.json": b"{}"}, as_folder=True) as files:
        write_all(files)
        assert not target.exists()
        files.commit([FINAL])
    assert names(target) == ["config.json", "model.bin"]
    assert names(tmp_path) == ["out"]


def test_an_existing_output_is_kept_without_force(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"old")
    with pytest.raises(UsageError, match="--force"):
        OutputFiles(tmp_path / "model.bin", [LAYOUT])
    with pytest.raises(KeyboardInterrupt), OutputFiles(tmp_path / "model.bin", [LAYOUT], force=True):
        raise KeyboardInterrupt
    assert (tmp_path / "model.bin").read_bytes() == b"old"


def test_force_replaces_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "stale.safetensors").write_bytes(b"old")
    with OutputFiles(target, [LAYOUT], as_folder=True, force=True) as files:
        write_all(files)
        files.commit([FINAL])
    assert names(target) == ["model.bin"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("other", ["thesis.txt", "inner.json/model.safetensors"])
def test_force_never_deletes_what_is_no_model(tmp_path: Path, other: str) -> None:
    kept = tmp_path / "out" / other
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"precious")
    with pytest.raises(UsageError, match=other.split("/")[0]):
        OutputFiles(tmp_path / "out", [LAYOUT], as_folder=True, force=True)
    assert kept.read_bytes() == b"precious"
    assert names(tmp_path) == ["out"]


def test_force_never_replaces_a_device_or_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.bin")
    with pytest.raises(UsageError, match="pipe"):
        OutputFiles(tmp_path / "model.bin", [LAYOUT], force=True)
    assert (tmp_path / "model.bin").is_fifo()


def test_a_second_writer_of_one_name_leaves_the_first_alone(tmp_path: Path) -> None:
    with OutputFiles(tmp_path / "model.bin", [LAYOUT]) as files:
        write_all(files)
        with pytest.raises(FileError, match="File exists"):
            OutputFiles(tmp_path / "model.bin", [LAYOUT])
        files.commit([FINAL])
    assert names(tmp_path) == ["model.bin"]


def test_a_name_too_long_for_the_disk(tmp_path: Path) -> None:
    for name in ("x" * 300, "x" * 250):
        with pytest.raises(FileError, match="cannot be written"):
            OutputFiles(tmp_path / name, [FileLayout(name, b"", (), 0)])
    assert names(tmp_path) == []


def test_bytes_that_read_back_wrong_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="tensor b read back"), OutputFiles(tmp_path / "model.bin", [LAYOUT]) as files:
        write_all(files)
        partial = next(tmp_path.glob(".model.bin.*.partial"))
        with partial.open("r+b") as file:
            file.seek(17)
            file.write(b"X")
        files.commit([FINAL])
    assert names(tmp_path) == []


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match="No space left"), OutputFiles(tmp_path / "model.bin", [LAYOUT]) as files:

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(output.os, "pwrite", full)
        files.write("a", "data", memoryview(b"1234"))
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_space_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="free"):
        OutputFiles(tmp_path / "model.bin", [FileLayout("model.bin", b"", (), 1 << 60)])
    assert names(tmp_path) == []


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    dead = tmp_path / ".model.bin.999999999.partial"
    dead.write_bytes(b"half")
    alive = tmp_path / ".model.bin.1.partial"
    alive.write_bytes(b"half")
    other = tmp_path / ".other.bin.999999999.partial"
    other.write_bytes(b"half")
    OutputFiles(tmp_path / "model.bin", [LAYOUT]).abort()
    assert names(tmp_path) == [alive.name, other.name]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no folder .*nowhere"):
        OutputFiles(tmp_path / "nowhere" / "model.bin", [LAYOUT])


def test_an_unfinished_tensor_is_a_mistake(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="not written whole"),
        OutputFiles(tmp_path / "model.bin", [LAYOUT]) as files,
    ):
        files.write("a", "data", memoryview(b"1234"))
        files.commit([FINAL])
    assert names(tmp_path) == []
