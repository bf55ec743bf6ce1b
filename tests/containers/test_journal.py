"""The journal of a replacement: what it may do, and for whom. `test_crash` tries every step of a replacement."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from bitsmith.containers import journal, renames, reservation
from bitsmith.containers.claim import Claim
from bitsmith.containers.output_names import OutputNames
from bitsmith.containers.reservation import settle
from bitsmith.errors import FileError
from tests.containers.outputs import opened, parts, tree, write


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> OutputNames:
    """A set of three parts on its way to two: the old names are gone, the new ones are not there yet."""
    folder.mkdir()
    with opened(folder / "m.gguf", parts(3)) as files:
        write(files, b"old!")
    calls = []

    def move(old: Path, new: Path) -> None:
        calls.append(old)
        if len(calls) > 3:
            raise KeyboardInterrupt
        renames.move_new(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "move_new", move)
        patch.setattr(journal, "_backward", interrupt)
        with pytest.raises(KeyboardInterrupt) as caught, opened(folder / "m.gguf", parts(2), force=True) as files:
            write(files, b"new!")
    assert "finishes or undoes that" in caught.value.__notes__[0]
    assert [name for name in tree(folder) if not name.startswith(".")] == []
    return OutputNames.of(folder / "m.gguf", as_folder=False)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


NEW = [layout.filename for layout in parts(2)]


@pytest.mark.parametrize("opens", ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00001-of-00003.gguf", "m.gguf"])
def test_opening_any_part_finishes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: str) -> None:
    stopped(tmp_path / "x", monkeypatch)
    settle(tmp_path / "x" / opens)
    assert list(tree(tmp_path / "x")) == NEW


def test_opening_it_through_a_link_finishes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path / "x", monkeypatch)
    (tmp_path / "link.gguf").symlink_to(tmp_path / "x" / NEW[0])
    settle(tmp_path / "link.gguf")
    assert list(tree(tmp_path / "x")) == NEW


def test_it_is_undone_if_a_new_file_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = stopped(tmp_path / "x", monkeypatch)
    names.partial(NEW[1]).unlink()
    settle(tmp_path / "x" / NEW[0])
    assert list(tree(tmp_path / "x")) == [layout.filename for layout in parts(3)]


def test_nothing_is_guessed_if_files_of_both_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = stopped(tmp_path / "x", monkeypatch)
    names.partial(NEW[1]).unlink()
    names.old(parts(3)[0].filename).unlink()
    before = tree(tmp_path / "x")
    with pytest.raises(FileError, match=r"its files have been moved since.*then remove .*\.journal"):
        settle(tmp_path / "x" / NEW[0])
    assert tree(tmp_path / "x") == before


def test_a_journal_that_was_copied_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder from elsewhere may hold a journal; its files have other inodes here."""
    stopped(tmp_path / "x", monkeypatch)
    shutil.copytree(tmp_path / "x", tmp_path / "copy")
    before = tree(tmp_path / "copy")
    with pytest.raises(FileError, match="have been moved since"):
        settle(tmp_path / "copy" / NEW[0])
    assert tree(tmp_path / "copy") == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"[" * 100_000,
        b'{"version": 2, "moves": []}',
        b'{"version": 1, "moves": 3}',
        *(
            json.dumps({"version": 1, "moves": [move]}).encode()
            for move in (
                3,
                {"name": "m.gguf"},
                {"name": "../m.gguf", "new": None, "old": 1},
                {"name": "thesis.gguf", "new": None, "old": 1},
                {"name": "m.gguf", "new": "1", "old": 1},
                {"name": "m.gguf", "new": None, "old": True},
                {"name": 3, "new": None, "old": 1},
            )
        ),
    ],
)
def test_a_journal_of_another_writer_is_refused(tmp_path: Path, content: bytes) -> None:
    names = OutputNames.of(tmp_path / "m.gguf", as_folder=False)
    names.journal.write_bytes(content)
    (tmp_path / "m.gguf").write_bytes(b"precious")
    with pytest.raises(FileError, match="is not a journal that this version of bitsmith has written"):
        settle(tmp_path / "m.gguf")
    with (
        pytest.raises(FileError, match="is not a journal"),
        opened(tmp_path / "m.gguf", parts(1), force=True),
    ):
        pass
    assert sorted(os.listdir(tmp_path)) == [names.journal.name, "m.gguf"]


def test_a_journal_that_is_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(OutputNames.of(tmp_path / "m.gguf", as_folder=False).journal)
    with pytest.raises(FileError, match="journal"):
        settle(tmp_path / "m.gguf")


def test_a_reader_waits_for_a_run_that_is_replacing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = stopped(tmp_path / "x", monkeypatch)
    held = Claim(names)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            held.release()

    monkeypatch.setattr(reservation.time, "sleep", sleep)
    settle(tmp_path / "x" / NEW[0])
    assert len(waits) == 3
    assert list(tree(tmp_path / "x")) == NEW


def test_a_reader_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = stopped(tmp_path / "x", monkeypatch)
    held = Claim(names)
    monkeypatch.setattr(reservation, "_PATIENCE", 0.0)
    with pytest.raises(FileError, match="another run is replacing it at this moment; try again later"):
        settle(tmp_path / "x" / NEW[0])
    held.release()


def test_a_reader_without_the_right_to_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path / "x", monkeypatch)

    def refused(names: OutputNames) -> None:
        raise PermissionError(13, "Permission denied", str(names.lock))

    monkeypatch.setattr(reservation, "Claim", refused)
    with pytest.raises(FileError, match=r"was interrupted .*Permission denied.*open it once with the right to write"):
        settle(tmp_path / "x" / NEW[0])


def test_settling_costs_nothing_where_nothing_was_interrupted(tmp_path: Path) -> None:
    settle(tmp_path / "m.gguf")
    settle(Path("owner/model"))
    settle(Path("reference"))
    settle(Path("no\0name"))
    assert list(tmp_path.iterdir()) == []
