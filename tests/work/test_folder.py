"""Work folders: kept after an interrupt, removed after success, and never used for anything else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bitsmith.containers.output_names import OutputNames
from bitsmith.errors import FileError, ResourceError, TensorError, UsageError
from bitsmith.work.folder import ABOUT, About, WorkFolder
from bitsmith.work.key import work_key
from bitsmith.work.leftovers import find_leftovers, remove_leftovers

KEY, OTHER = "a" * 24, "b" * 24


def folder(tmp_path: Path, key: str = KEY, *, fresh: bool = False) -> WorkFolder:
    names = OutputNames.of(tmp_path / "x.gguf", as_folder=False)
    return WorkFolder(names, key, About("quantize", "q4_k_m of tiny"), fresh=fresh)


def interrupted(tmp_path: Path, key: str = KEY) -> WorkFolder:
    """A folder that an interrupted run has left with one state and one line."""
    work = folder(tmp_path, key)
    with pytest.raises(KeyboardInterrupt), work:
        work.write("blocks", {"layer": 3}, {"x": np.arange(4)})
        work.add([{"said": "block 3 of 12"}])
        raise KeyboardInterrupt
    return work


def test_success_removes_it(tmp_path: Path) -> None:
    with folder(tmp_path) as work:
        work.write("blocks", {}, {})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_keeps_it_and_says_so(tmp_path: Path) -> None:
    work = folder(tmp_path)
    with pytest.raises(KeyboardInterrupt) as stopped, work:
        work.write("blocks", {"layer": 3}, {})
        raise KeyboardInterrupt
    assert f"what was done is kept in {work.path}; the same command continues" in stopped.value.__notes__[0]
    with folder(tmp_path) as again:
        state = again.read("blocks")
        assert state is not None
        with state:
            assert state.values == {"layer": 3}


@pytest.mark.parametrize("error", [TensorError("NaN"), UsageError("no")])
def test_an_error_that_would_come_again_removes_it(error: Exception, tmp_path: Path) -> None:
    work = folder(tmp_path)
    with pytest.raises(type(error)), work:
        work.write("blocks", {}, {})
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [FileError("the disk is full"), ResourceError("no memory"), MemoryError()])
def test_an_error_that_may_pass_keeps_it(error: Exception, tmp_path: Path) -> None:
    work = folder(tmp_path)
    with pytest.raises(type(error)), work:
        work.write("blocks", {}, {})
        raise error
    assert work.worth


def test_nothing_worth_keeping_is_removed_after_an_interrupt(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped, folder(tmp_path) as work:
        (work.files).mkdir()
        raise KeyboardInterrupt
    assert not hasattr(stopped.value, "__notes__")
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_it_continues(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with folder(tmp_path) as work:
        assert work.notes()[0].startswith("continuing an interrupted run after block 3 of 12, from ")


def test_fresh_removes_everything(tmp_path: Path) -> None:
    interrupted(tmp_path)
    interrupted(tmp_path, OTHER)
    with folder(tmp_path, fresh=True) as work:
        assert work.read("blocks") is None
        assert work.notes() == ()
    assert list(tmp_path.iterdir()) == []


def test_work_of_another_run_is_named_and_stays(tmp_path: Path) -> None:
    other = interrupted(tmp_path, OTHER)
    with folder(tmp_path) as work:
        said = work.notes()
        assert len(said) == 1
        assert f"{other.path} holds work of an interrupted run with other files, options or programs" in said[0]
        assert work.read("blocks") is None
    assert other.worth


def test_work_of_another_version_is_named(tmp_path: Path) -> None:
    other = interrupted(tmp_path, OTHER)
    about = json.loads((other.path / ABOUT).read_text())
    (other.path / ABOUT).write_text(json.dumps({**about, "version": "9.9"}))
    with folder(tmp_path) as work:
        assert "an interrupted run of bitsmith 9.9, which is not used" in work.notes()[0]


def test_a_damaged_state_is_ignored_with_a_word(tmp_path: Path) -> None:
    work = interrupted(tmp_path)
    path = work.path / "blocks.state"
    path.write_bytes(path.read_bytes()[:-1])
    with folder(tmp_path) as again:
        assert again.read("blocks") is None
        assert any("blocks.state of the kept work is damaged" in word for word in again.take_words())
        assert not path.exists()


def test_a_damaged_ledger_is_ignored_with_a_word(tmp_path: Path) -> None:
    work = interrupted(tmp_path)
    (work.path / "ledger").write_bytes(b"not a ledger\n")
    with folder(tmp_path) as again:
        assert again.said == ""
        assert any("ledger is damaged" in word for word in again.notes())


def test_what_no_run_has_made_is_not_removed(tmp_path: Path) -> None:
    mine = tmp_path / ".x.gguf.bitsmith.work" / "mine"
    mine.mkdir(parents=True)
    (mine / "precious").write_text("x")
    with folder(tmp_path):
        pass
    assert (mine / "precious").exists()
    assert find_leftovers(tmp_path) == []


def test_a_link_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".x.gguf.bitsmith.work").symlink_to(elsewhere)
    with pytest.raises(FileError, match="it is a link"), folder(tmp_path):
        pass
    assert elsewhere.is_dir()


def test_no_room_to_spare_says_so_once(tmp_path: Path) -> None:
    with folder(tmp_path) as work:
        work.needed = 1 << 62
        assert not work.write("blocks", {}, {"x": np.zeros(4)})
        assert not work.write("blocks", {}, {"x": np.zeros(4)})
        assert work.read("blocks") is None
        assert len(work.take_words()) == 1


def test_keys_depend_on_files_and_recipe(tmp_path: Path) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"1234")
    first = work_key([file], {"to": "q4_k_m"})
    assert first == work_key([file], {"to": "q4_k_m"})
    assert first != work_key([file], {"to": "q5_k_m"})
    file.write_bytes(b"1235")
    assert first != work_key([file], {"to": "q4_k_m"})
    with pytest.raises(FileError, match="cannot be read"):
        work_key([tmp_path / "none"], {})


def test_leftovers_are_found_and_removed(tmp_path: Path) -> None:
    inner = tmp_path / "models" / "deep"
    inner.mkdir(parents=True)
    work = interrupted(inner)
    (inner / ".y.gguf.bitsmith.partial").write_bytes(b"1" * 5000)
    (tmp_path / ".z.gguf.bitsmith.lock").write_text("")
    found = {each.path.name: each for each in find_leftovers(tmp_path)}
    assert found.keys() == {KEY, ".y.gguf.bitsmith.partial", ".z.gguf.bitsmith.lock"}
    assert found[KEY].what.startswith("quantize, q4_k_m of tiny, bitsmith ")
    assert found[KEY].output == inner / "x.gguf"
    assert found[".y.gguf.bitsmith.partial"].size >= 5000
    removed = remove_leftovers(found.values())
    assert len(removed) == 3
    assert not work.root.exists()
    assert find_leftovers(tmp_path) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_run_uses_is_not_removed(tmp_path: Path) -> None:
    from bitsmith.containers.claim import Claim

    work = interrupted(tmp_path)
    claim = Claim(OutputNames.of(tmp_path / "x.gguf", as_folder=False))
    found = find_leftovers(tmp_path)
    assert found
    assert all(each.in_use for each in found)
    assert remove_leftovers(found) == []
    assert work.worth
    claim.release()
    assert not any(each.in_use for each in find_leftovers(tmp_path))
