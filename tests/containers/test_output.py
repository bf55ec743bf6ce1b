"""OutputFiles: whole under the final name, or not there at all."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, field
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
    with pytest.raises(UsageError, match="force=True"):
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


@pytest.mark.parametrize(
    ("at", "message"), [(1, "the header read back"), (9, "tensor a read back"), (17, "tensor b"), (20, "the header")]
)
def test_what_the_disk_changes_after_the_flush_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, message: str
) -> None:
    """In the header, in a tensor, and behind the last one."""
    flush = os.fsync

    def spoiled(handle: int) -> None:
        flush(handle)
        os.pwrite(handle, b"X", at)

    with pytest.raises(FileError, match=message), OutputFiles(tmp_path / "model.bin", [LAYOUT]) as files:
        write_all(files)
        monkeypatch.setattr(output.os, "fsync", spoiled)
        files.commit([FINAL])
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be told to drop its cache")
def test_files_are_read_back_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system is told to drop what it holds of a file after the flush and before anything is read."""
    asked: list[str] = []

    def noted(name: str) -> None:
        call = getattr(os, name)
        monkeypatch.setattr(output.os, name, lambda *words: asked.append(name) or call(*words))

    for name in ("fsync", "posix_fadvise", "pread", "preadv"):
        noted(name)
    with OutputFiles(tmp_path / "model.bin", [LAYOUT]) as files:
        write_all(files)
        files.commit([FINAL])
    assert asked == ["fsync", "posix_fadvise", "pread", "preadv", "preadv", "fsync"]


def test_parts_larger_than_the_buffer_are_read_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_READ_BACK_BYTES", 3)
    with OutputFiles(tmp_path / "model.bin", [LAYOUT]) as files:
        write_all(files)
        files.commit([FINAL])
    assert names(tmp_path) == ["model.bin"]


def test_a_disk_that_takes_a_byte_at_a_time_gets_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(output.os, "pwrite", lambda handle, data, offset: write(handle, data[:1], offset))
    with OutputFiles(tmp_path / "model.bin", [LAYOUT]) as files:
        write_all(files)
        files.commit([FINAL])
    assert (tmp_path / "model.bin").read_bytes() == b"head\0\0\0\x001234\0\0\0\x005678"


def test_a_folder_that_cannot_be_named_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = tmp_path / "out", os.rename
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"old")

    def refused(old: Path, new: Path) -> None:
        if old.name.endswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(old, new)

    monkeypatch.setattr(output.os, "rename", refused)
    with (
        pytest.raises(FileError, match="cannot be written"),
        OutputFiles(target, [LAYOUT], as_folder=True, force=True) as files,
    ):
        write_all(files)
        files.commit([FINAL])
    assert (target / "model.safetensors").read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_more_bytes_than_a_part_has_are_a_mistake(tmp_path: Path) -> None:
    with OutputFiles(tmp_path / "model.bin", [LAYOUT]) as files:
        files.write("a", "data", memoryview(b"123"))
        with pytest.raises(ValueError, match=r"a\.data: 5 bytes for a region of 4"):
            files.write("a", "data", memoryview(b"45"))


@pytest.mark.parametrize(
    "moved",
    [
        FileLayout("model.bin", b"longer", LAYOUT.regions, 20),
        FileLayout("model.bin", b"head", LAYOUT.regions[::-1], 20),
        FileLayout("model.bin", b"head", LAYOUT.regions, 24),
    ],
)
def test_a_final_header_that_moves_tensors_is_a_mistake(tmp_path: Path, moved: FileLayout) -> None:
    with pytest.raises(ValueError, match="moved the tensors"), OutputFiles(tmp_path / "model.bin", [LAYOUT]) as files:
        write_all(files)
        files.commit([moved])
    assert names(tmp_path) == []


SHARDS = [
    FileLayout(f"model-{n}-of-2.bin", b"HEAD", (Region(name, "data", 8, 4),), 12) for n, name in ((1, "a"), (2, "b"))
]
EXTRAS = {"config.json": b"{}", "additional_chat_templates/tool.jinja": b"{{ tools }}"}


@dataclass
class Disk:
    """What was asked of the disk, in order: ("write" or "flush", inode, size by then) and ("name", inode, new name)."""

    asked: list[tuple[str, int, int | str]] = field(default_factory=list)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Note every pwrite, fsync, replace and rename from now on."""
        for call in ("pwrite", "fsync"):
            monkeypatch.setattr(
                output.os, call, self._noted("write" if call == "pwrite" else "flush", getattr(os, call))
            )
        for call in ("replace", "rename"):
            monkeypatch.setattr(output.os, call, self._named(getattr(os, call)))

    def _noted(self, kind: str, call: Callable[..., int]) -> Callable[..., int]:
        def noted(handle: int, *rest: memoryview | int) -> int:
            done = call(handle, *rest)
            found = os.fstat(handle)
            self.asked.append((kind, found.st_ino, found.st_size))
            return done

        return noted

    def _named(self, call: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def named(old: Path, new: Path) -> None:
            self.asked.append(("name", old.stat().st_ino, new.name))
            call(old, new)

        return named

    def times(self, kind: str, path: Path) -> list[int]:
        """When `path`, as it now is, was written, flushed or named."""
        inode = path.stat().st_ino
        return [at for at, (what, which, _) in enumerate(self.asked) if (what, which) == (kind, inode)]

    def size_flushed(self, path: Path) -> int | str:
        """The size of `path` when it was last flushed."""
        return self.asked[self.times("flush", path)[-1]][2]


def commit_shards(files: OutputFiles) -> None:
    files.write("a", "data", memoryview(b"1234"))
    files.write("b", "data", memoryview(b"5678"))
    files.commit(SHARDS)


def test_files_reach_the_disk_before_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut leaves no final name on bytes that are not there: files are flushed, renamed, then the folder."""
    disk = Disk()
    disk.watch(monkeypatch)
    with OutputFiles(tmp_path / SHARDS[0].filename, SHARDS) as files:
        commit_shards(files)
    renamed = [disk.times("name", path) for path in files.final_paths()]
    for path, at in zip(files.final_paths(), renamed, strict=True):
        assert disk.times("write", path)[-1] < disk.times("flush", path)[-1] < min(min(renamed))
        assert disk.size_flushed(path) == path.stat().st_size
        assert len(at) == 1
    assert renamed[1] < renamed[0]  # the first shard last: a loader starts from it
    assert disk.times("flush", tmp_path)[-1] > max(renamed)[0]


def test_a_folder_reaches_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files, then what it lists, then its name."""
    disk = Disk()
    disk.watch(monkeypatch)
    target = tmp_path / "out"
    with OutputFiles(target, SHARDS, extras=EXTRAS, as_folder=True) as files:
        commit_shards(files)
    (renamed,) = disk.times("name", target)
    for path in files.final_paths():
        assert disk.times("flush", path)[-1] < disk.times("flush", target)[-1] < renamed
        assert disk.size_flushed(path) == path.stat().st_size > 0
        assert disk.times("write", path)[-1:] < disk.times("flush", path)[-1:]
    assert disk.times("flush", tmp_path)[-1] > renamed


def test_an_output_that_nobody_holds_leaves_nothing(tmp_path: Path) -> None:
    """As after an interrupt between making it and entering `with`."""
    for as_folder in (False, True):
        output = OutputFiles(tmp_path / "out", [FileLayout("out", b"head", (), 4)], as_folder=as_folder)
        assert [path.name for path in tmp_path.iterdir()] == [f".out.{os.getpid()}.partial"]
        del output
        gc.collect()
        assert list(tmp_path.iterdir()) == []
