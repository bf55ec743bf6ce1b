"""Where an output may be written: room, rights, and what is never replaced."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitsmith.containers import destination
from bitsmith.containers.destination import check_destination
from bitsmith.containers.layout import FileLayout
from bitsmith.errors import FileError, UsageError

LAYOUTS = [FileLayout("model.bin", b"", (), 700), FileLayout("more.bin", b"", (), 300)]
EXTRAS = {"config.json": bytes(24)}
SPARE = 1 << 20


def check(target: Path, *, as_folder: bool = False, force: bool = False, source: Path | None = None) -> None:
    extras = EXTRAS if as_folder else {}
    check_destination(target, LAYOUTS, extras=extras, as_folder=as_folder, force=force, source=source)


def test_the_disk_has_room_for_all_files_and_some_to_spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1024 + SPARE
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    check(tmp_path / "out", as_folder=True)
    free -= 1
    with pytest.raises(FileError, match="takes 1,024 bytes, but the disk has 1,049,599 free"):
        check(tmp_path / "out", as_folder=True)
    free = 1000 + SPARE
    check(tmp_path / "model.bin")


def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination.os, "access", lambda path, mode: mode != os.W_OK | os.X_OK or path != tmp_path)
    with pytest.raises(FileError, match="not writable; choose another out="):
        check(tmp_path / "model.bin")


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="the output is a file, but a folder of that name exists"):
        check(tmp_path / "folder", force=True)
    with pytest.raises(UsageError, match="the output is a folder, but a file of that name exists"):
        check(tmp_path / "file", as_folder=True, force=True)


def test_every_shard_counts_as_taken(tmp_path: Path) -> None:
    (tmp_path / "more.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"more\.bin exists already; give force=True"):
        check(tmp_path / "model.bin")
    check(tmp_path / "model.bin", force=True)


def test_the_model_it_is_made_from_is_never_replaced(tmp_path: Path) -> None:
    """Neither under its own name, nor under a link to it, nor with the folder around it."""
    source = tmp_path / "given" / "model.bin"
    source.parent.mkdir()
    source.write_bytes(b"")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more.bin").symlink_to(source)
    for target, named in ((source, "model"), (tmp_path / "linked" / "model.bin", "more")):
        with pytest.raises(UsageError, match=rf"{named}\.bin: the output would replace the model"):
            check(target, force=True, source=source)
    with pytest.raises(UsageError, match="given: the output would replace the model"):
        check(source.parent, as_folder=True, force=True, source=source)
