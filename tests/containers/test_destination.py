"""Where an output may be written: room, rights, links, and what is never replaced."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitsmith.containers import destination
from bitsmith.containers.destination import Destination, check_space, folder_for, followed
from bitsmith.containers.gguf.writer import gguf_layout
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.reservation import Reservation
from bitsmith.errors import FileError, UsageError
from tests.containers.outputs import opened, parts, tree, write

EXTRAS = {"config.json": bytes(24)}
SPARE = 1 << 20


def file(target: Path, size: int = 1000) -> Destination:
    return Destination(target, [FileLayout(target.name, b"", (), size)])


def folder(target: Path, size: int = 1000) -> Destination:
    return Destination(target, [FileLayout("model.safetensors", b"", (), size)], EXTRAS, True)


def check(place: Destination, *, force: bool = False, sources: tuple[Path, ...] = ()) -> None:
    Reservation([place], sources=sources, force=force).release()


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))


def test_the_disk_has_room_for_all_files_and_some_to_spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 1024 + SPARE)
    check(folder(tmp_path / "out"))
    free(monkeypatch, 1023 + SPARE)
    with pytest.raises(FileError, match="the output takes 1,024 bytes, but the disk has 1,049,599 free"):
        check(folder(tmp_path / "out"))
    check(file(tmp_path / "model.bin"))


def test_the_outputs_of_one_run_need_room_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [file(tmp_path / "a"), file(tmp_path / "b"), folder(tmp_path / "c")]
    free(monkeypatch, 3024 + SPARE)
    check_space(outputs)
    free(monkeypatch, 3023 + SPARE)
    with pytest.raises(FileError, match=r"a, .*b, .*c: the 3 outputs together take 3,024 bytes"):
        Reservation(outputs)
    assert list(tmp_path.iterdir()) == []


def test_a_replaced_output_gives_its_room_back_only_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both exist at once; the output after them finds the room of the old one. A second name keeps the room taken."""
    old = tmp_path / "a"
    old.write_bytes(bytes(8192))
    given_back = old.stat().st_blocks * 512
    assert given_back >= 8192
    outputs = [file(tmp_path / "a", 1000), file(tmp_path / "b", given_back)]
    free(monkeypatch, 1000 + SPARE)
    check_space(outputs)
    free(monkeypatch, 999 + SPARE)
    with pytest.raises(FileError, match="take 1,000 bytes"):
        check_space(outputs)
    free(monkeypatch, 1000 + SPARE)
    os.link(old, tmp_path / "second name")
    with pytest.raises(FileError, match=f"take {given_back + 1000:,} bytes"):
        check_space(outputs)


def test_each_disk_counts_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    real = os.stat
    monkeypatch.setattr(
        destination.os,
        "stat",
        lambda path, **more: SimpleNamespace(st_dev=str(path)) if Path(path).parent == tmp_path else real(path, **more),
    )
    free(monkeypatch, 1000 + SPARE)
    check_space([file(tmp_path / "one" / "a"), file(tmp_path / "two" / "b")])
    with pytest.raises(FileError, match="2 outputs together"):
        check_space([file(tmp_path / "one" / "a"), file(tmp_path / "one" / "b")])


def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination.os, "access", lambda path, mode: mode != os.W_OK | os.X_OK or path != tmp_path)
    with pytest.raises(FileError, match="not writable; choose another output path"):
        check(file(tmp_path / "model.bin"))


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="the output is a file, but a folder of that name exists"):
        check(file(tmp_path / "folder"), force=True)
    with pytest.raises(UsageError, match="the output is a folder, but a file of that name exists"):
        check(folder(tmp_path / "file"), force=True)


def test_every_part_counts_as_taken(tmp_path: Path) -> None:
    layouts = parts(2)
    (tmp_path / layouts[1].filename).write_bytes(b"")
    with pytest.raises(UsageError, match=r"m-00002-of-00002\.gguf exists already"):
        check(Destination(tmp_path / "m.gguf", layouts))
    check(Destination(tmp_path / "m.gguf", layouts), force=True)


def test_an_older_set_of_the_same_name_counts_as_taken_and_goes_with_it(tmp_path: Path) -> None:
    """Whatever its number of parts is. The set of another program stays, and stands in nobody's way."""
    with opened(tmp_path / "m.gguf", parts(3)) as files:
        write(files, b"old!")
    foreign = gguf_layout("x.gguf", {}, [])[0]
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00004.gguf").write_bytes(foreign.header)
    for count in (1, 2):
        with pytest.raises(UsageError, match=r"m(-00001-of-00003)?\.gguf exists already"):
            check(Destination(tmp_path / "m.gguf", parts(count)))
        with opened(tmp_path / "m.gguf", parts(count), force=True) as files:
            write(files, b"new!")
        names = {layout.filename for layout in parts(count)}
        assert set(tree(tmp_path)) == names | {"m-00001-of-00004.gguf", "m-00002-of-00004.gguf"}
    assert (tmp_path / "m-00001-of-00004.gguf").read_bytes() == foreign.header


def test_a_source_is_never_replaced(tmp_path: Path) -> None:
    """Neither under its own name, nor under a hard link, nor with the folder around it or a folder that links to it."""
    source = tmp_path / "given" / "model.safetensors"
    source.parent.mkdir()
    source.write_bytes(b"precious")
    os.link(source, tmp_path / "hard.bin")
    (tmp_path / "around").mkdir()
    os.link(source, tmp_path / "around" / "model.safetensors")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "model.safetensors").symlink_to(source)
    with pytest.raises(UsageError, match="a file that this run reads; choose another output path"):
        check(file(source), force=True, sources=(source,))
    with pytest.raises(UsageError, match=r"hard\.bin: the output would replace .*given/model\.safetensors, which this"):
        check(file(tmp_path / "hard.bin"), force=True, sources=(source,))
    for name in ("given", "around", "links"):
        with pytest.raises(UsageError, match=rf"{name}: the output would replace .*, which this run reads"):
            check(folder(tmp_path / name), force=True, sources=(source,))
    check(folder(tmp_path / "given" / "new"), sources=(source,))
    assert source.read_bytes() == b"precious"


def test_a_part_that_is_read_is_not_removed_with_an_older_set(tmp_path: Path) -> None:
    with opened(tmp_path / "m.gguf", parts(3)) as files:
        write(files, b"old!")
    source = tmp_path / "m-00002-of-00003.gguf"
    for force in (False, True):
        with pytest.raises(UsageError, match=r"m-00002-of-00003\.gguf: the output would replace a file that this run"):
            check(Destination(tmp_path / "m.gguf", parts(1)), sources=(source,), force=force)


def test_a_source_with_a_temporary_name_is_not_cleared_away(tmp_path: Path) -> None:
    source = tmp_path / ".m.gguf.bitsmith.partial"
    source.write_bytes(b"precious")
    with pytest.raises(UsageError, match="a file that this run reads"):
        check(Destination(tmp_path / "m.gguf", parts(1)), sources=(source,))
    assert source.read_bytes() == b"precious"


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real.bin"
    link = tmp_path / "link.bin"
    link.symlink_to(real)
    assert followed(real, force=False) == real
    with pytest.raises(UsageError, match=r"link\.bin is a link to .*real\.bin, which does not exist; give force=True"):
        followed(link, force=False)
    assert followed(link, force=True) == real
    real.write_bytes(b"old")
    assert followed(link, force=False) == real
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(UsageError, match="a link that leads to itself"):
        followed(link, force=True)


def test_a_link_among_the_parts_is_refused(tmp_path: Path) -> None:
    """Also one that leads nowhere."""
    link = tmp_path / "m-00002-of-00002.gguf"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"m-00002-of-00002\.gguf exists already"):
        check(Destination(tmp_path / "m.gguf", parts(2)))
    with pytest.raises(UsageError, match="is a link, which is never replaced"):
        check(Destination(tmp_path / "m.gguf", parts(2)), force=True)
    assert link.is_symlink()


def test_a_folder_for_several_outputs_goes_again_if_nothing_lies_in_it(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(KeyboardInterrupt), folder_for(made):
        assert made.is_dir()
        raise KeyboardInterrupt
    assert not made.exists()
    with pytest.raises(KeyboardInterrupt), folder_for(made):
        (made / "done.gguf").write_bytes(b"")
        raise KeyboardInterrupt
    assert made.is_dir()
    with pytest.raises(KeyboardInterrupt), folder_for(made):
        (made / "done.gguf").unlink()
        raise KeyboardInterrupt
    assert made.is_dir()  # it was there before
    with pytest.raises(FileError, match="cannot be made"), folder_for(tmp_path / "no" / "such"):
        pass
