"""What a whole run does to the files that are there: sources, older outputs, links, other runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bitsmith
from bitsmith.calibration.imatrix import Entry, Imatrix, imatrix_file
from bitsmith.containers import destination, journal, renames
from bitsmith.containers.gguf.header import read_header
from bitsmith.containers.manifest import SET_KEY
from bitsmith.containers.output_names import OutputNames
from bitsmith.containers.safetensors_header import read_header as read_safetensors
from bitsmith.errors import FileError, UsageError
from tests.cli.command import Command
from tests.containers.outputs import tree
from tests.tiny import CONFIG, HIDDEN, INNER, LAYERS, make_folder, weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that no test changes."""
    folder = make_folder(tmp_path_factory.mktemp("source") / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture(scope="module")
def single(model: Path) -> Path:
    return bitsmith.quantize(model, to="bf16", out=model.parent / "single.gguf").out


@pytest.fixture(scope="module")
def split(model: Path) -> tuple[Path, ...]:
    made = bitsmith.quantize(model, to="bf16", out=model.parent / "split.gguf", max_shard_size="600kB")
    assert len(made.paths) > 2
    return made.paths


def importance(path: Path) -> Path:
    """An importance file of the tiny model."""
    sizes = {"attn_q": HIDDEN, "attn_k": HIDDEN, "attn_v": HIDDEN, "attn_output": HIDDEN}
    sizes |= {"ffn_gate": HIDDEN, "ffn_up": HIDDEN, "ffn_down": INNER}
    entries = {
        f"blk.{layer}.{name}.weight": Entry(np.ones((1, cols), np.float32), np.array([64]))
        for layer in range(LAYERS)
        for name, cols in sizes.items()
    }
    layout, data = imatrix_file(Imatrix(entries, ("text",), 1, 64), path.name)
    with path.open("wb") as file:
        file.write(layout.header)
        for region in layout.regions:
            file.seek(region.offset)
            file.write(data[region.tensor].tobytes())
        file.truncate(layout.size)
    return path


# -- sources


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "tokenizer.json",
        "config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
    ],
)
def test_no_file_of_the_source_folder_is_replaced(model: Path, name: str) -> None:
    before = tree(model)
    for force in (False, True):
        with pytest.raises(UsageError, match=r"the output would replace a file that this run reads; choose another"):
            bitsmith.quantize(model, to="q8_0", out=model / name, force=force)
    assert tree(model) == before


def test_the_source_folder_and_what_is_around_it_are_not_replaced(model: Path, tmp_path: Path) -> None:
    before = tree(model.parent)
    (tmp_path / "link").symlink_to(model)
    for out in (model, model.parent, tmp_path / "link", model / "additional_chat_templates"):
        with pytest.raises(UsageError, match=r"the output would replace .*, which this run reads"):
            bitsmith.quantize(model, to="native/int8", out=out, force=True)
    assert tree(model.parent) == before


def test_a_new_output_may_lie_in_the_source_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    for force in (False, True):
        bitsmith.quantize(folder, to="q8_0", out=folder / "mine.gguf", force=force)
        bitsmith.quantize(folder, to="native/int8", out=folder / "mine", force=force)


def test_no_part_of_a_split_source_is_replaced(split: tuple[Path, ...], tmp_path: Path) -> None:
    """Whichever part was named, under its own name, with its set, or by a hard link."""
    before = tree(split[0].parent)
    for out in (split[1], split[-1], split[0].with_name("split.gguf")):
        for force in (False, True):
            with pytest.raises(UsageError, match=r"split-0000\d-of-0000\d\.gguf: the output would replace a file"):
                bitsmith.quantize(split[0], to="q8_0", out=out, force=force)
    os.link(split[1], tmp_path / "hard.gguf")
    with pytest.raises(UsageError, match=r"hard\.gguf: the output would replace .*split-00002"):
        bitsmith.quantize(split[0], to="q8_0", out=tmp_path / "hard.gguf", force=True)
    assert tree(split[0].parent) == before


@pytest.mark.parametrize("ending", ["gguf", "dat"])
def test_an_importance_file_is_not_replaced(model: Path, tmp_path: Path, ending: str) -> None:
    file = importance(tmp_path / f"imatrix.{ending}")
    before = file.read_bytes()
    with pytest.raises(UsageError, match="a file that this run reads"):
        bitsmith.quantize(model, to="q8_0", out=file, calibration=str(file), force=True)
    with pytest.raises(UsageError, match="a file that this run reads"):
        bitsmith.imatrix(model, calibration=str(file), out=file, force=True)
    assert file.read_bytes() == before


def test_imatrix_does_not_replace_its_model_or_its_text(single: Path, tmp_path: Path) -> None:
    before = tree(single.parent)
    (tmp_path / "text.txt").write_text("Once upon a time there was a small model. " * 400)
    with pytest.raises(UsageError, match="a file that this run reads"):
        bitsmith.imatrix(single, out=single, force=True)
    os.link(tmp_path / "text.txt", tmp_path / "other.dat")
    with pytest.raises(UsageError, match=r"other\.dat: the output would replace .*text\.txt, which this run reads"):
        bitsmith.imatrix(single, calibration=str(tmp_path / "text.txt"), out=tmp_path / "other.dat", force=True)
    assert tree(single.parent) == before


def test_a_picture_does_not_replace_the_model(tmp_path: Path, bitsmith_command: Command) -> None:
    pytest.importorskip("matplotlib")
    folder = make_folder(tmp_path / "model")
    os.link(folder / "model.safetensors", tmp_path / "picture.png")
    before = tree(folder)
    message = bitsmith_command.fails(2, "plan", folder, "--device", "rtx-3060", "--plot", tmp_path / "picture.png")
    assert "the output would replace" in message
    assert tree(folder) == before


# -- other runs


@pytest.mark.parametrize("force", [False, True])
def test_a_second_run_of_one_output_is_refused_before_its_work(model: Path, tmp_path: Path, force: bool) -> None:
    """While the first is at work; other outputs are free."""
    out = tmp_path / "x.gguf"
    refused = []

    def meanwhile(_: object) -> None:
        for name in ("x.gguf", "x-00001-of-00002.gguf"):
            with pytest.raises(UsageError, match=rf"x\.gguf: another run is writing .*process {os.getpid()} on "):
                bitsmith.quantize(model, to="q4_0", out=tmp_path / name, force=force)
            refused.append(name)
        bitsmith.quantize(model, to="q4_0", out=tmp_path / "other.gguf")

    bitsmith.quantize(model, to="q8_0", out=out, force=force, on_plan=meanwhile)
    assert len(refused) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.gguf", "x.gguf"]
    assert bitsmith.inspect(out, verify=True).problems == ()


def test_a_name_that_appears_while_a_run_works_is_kept(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    with pytest.raises(FileError, match=r"x\.gguf appeared while this run was working, and was not replaced"):
        bitsmith.quantize(model, to="q8_0", out=out, on_plan=lambda _: out.write_bytes(b"precious"))
    left = {name: data for name, data in tree(tmp_path).items() if not name.startswith(".x.gguf.bitsmith.work")}
    assert left == {"x.gguf": b"precious"}  # on a slow machine, what was done is kept too


# -- links


def test_an_output_behind_a_link_is_written_where_it_leads(model: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    for to, name in (("q8_0", "real.gguf"), ("native/int8", "real")):
        real, link = tmp_path / "far" / name, tmp_path / f"link-{name}"
        link.symlink_to(real)
        with pytest.raises(UsageError, match=r"is a link to .* which does not exist; give "):
            bitsmith.quantize(model, to=to, out=link)
        assert bitsmith.quantize(model, to=to, out=link, force=True).out == real
        with pytest.raises(UsageError, match=r"far/real.* exists already"):
            bitsmith.quantize(model, to=to, out=link)
        bitsmith.quantize(model, to=to, out=link, force=True)
        assert link.is_symlink()
        assert bitsmith.inspect(link, verify=True).problems == ()
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["real", "real.gguf"]


def test_several_files_behind_one_link_are_refused(model: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(tmp_path / "real.gguf")
    with pytest.raises(UsageError, match=r"link\.gguf is a link to one file, but the output is \d files"):
        bitsmith.quantize(model, to="q8_0", out=link, max_shard_size="300kB", force=True)
    assert list(tmp_path.iterdir()) == [link]


# -- sets


def sets(folder: Path, to: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The weights of two outputs of two models that differ in a weight, of one name and as many files."""
    made = []
    for seed in (0, 1):
        source = make_folder(folder / f"source{seed}", tensors=weights(CONFIG, seed))
        out = folder / f"made{seed}" / "m.gguf"
        out.parent.mkdir()
        done = bitsmith.quantize(source, to=to, out=out, max_shard_size="400kB")
        made.append(tuple(path for path in done.paths if path.suffix in (".gguf", ".safetensors")))
    return made[0], made[1]


@pytest.mark.parametrize("to", ["q8_0", "native/int8", "gptq/int8"])
def test_parts_of_two_outputs_are_not_taken_for_one(tmp_path: Path, to: str) -> None:
    one, other = sets(tmp_path, to)
    assert [path.name for path in one] == [path.name for path in other]
    for mixed in (0, 1, len(one) - 1):
        kept = one[mixed].read_bytes()
        shutil.copy(other[mixed], one[mixed])
        opened = one[0] if to == "q8_0" else one[0].parent
        with pytest.raises(FileError, match="belong to two different outputs") as caught:
            bitsmith.inspect(opened)
        assert one[mixed].name in str(caught.value)
        one[mixed].write_bytes(kept)
    assert bitsmith.inspect(opened, verify=True).problems == ()


def identifiers(paths: tuple[Path, ...]) -> list[object]:
    found: list[object] = []
    for path in paths:
        if path.suffix == ".safetensors":
            found.append(read_safetensors(path).metadata.get(SET_KEY))
        elif path.suffix == ".gguf":
            with path.open("rb") as file:
                value = read_header(file.fileno(), path).keys.get(SET_KEY)
            found.append(None if value is None else value.value)
    return found


@pytest.mark.parametrize("to", ["q8_0", "native/int8"])
def test_the_identifier_of_a_set_depends_on_nothing_but_its_content(model: Path, tmp_path: Path, to: str) -> None:
    """One file has none: its bytes are what they always were."""
    made = [
        bitsmith.quantize(model, to=to, out=tmp_path / f"x{threads}.gguf", max_shard_size="400kB", threads=threads)
        for threads in (1, 2)
    ]
    first, second = (identifiers(each.paths) for each in made)
    assert first == second
    assert len(set(first)) == 1
    assert len(str(first[0])) == 64
    assert [path.read_bytes() for path in made[0].paths] == [path.read_bytes() for path in made[1].paths]
    other = bitsmith.quantize(model, to="q4_0", out=tmp_path / "y.gguf", max_shard_size="400kB")
    assert identifiers(other.paths)[0] != first[0]
    assert set(identifiers(bitsmith.quantize(model, to=to, out=tmp_path / "whole.gguf").paths)) == {None}


def test_a_set_is_made_again_from_a_set(split: tuple[Path, ...], tmp_path: Path) -> None:
    """The new one gets an identifier of its own, and one file gets none."""
    again = bitsmith.quantize(split[0], to="bf16", out=tmp_path / "again.gguf", max_shard_size="600kB", requantize=True)
    assert None not in identifiers(again.paths)
    assert set(identifiers(again.paths)) != set(identifiers(split))
    whole = bitsmith.quantize(split[0], to="bf16", out=tmp_path / "whole.gguf", requantize=True)
    assert identifiers(whole.paths) == [None]


@pytest.mark.parametrize("sizes", [("400kB", "300kB"), ("300kB", None), (None, "300kB"), ("300kB", "300kB")])
def test_another_size_of_parts_leaves_nothing_of_the_older_set(
    model: Path, tmp_path: Path, sizes: tuple[str | None, str | None]
) -> None:
    bitsmith.quantize(model, to="q8_0", out=tmp_path / "m.gguf", max_shard_size=sizes[0])
    words: dict[str, str | None] = {"max_shard_size": sizes[1]}
    with pytest.raises(UsageError, match="exists already"):
        bitsmith.quantize(model, to="q4_0", out=tmp_path / "m.gguf", **words)
    made = bitsmith.quantize(model, to="q4_0", out=tmp_path / "m.gguf", force=True, **words)
    assert sorted(tmp_path.iterdir()) == sorted(made.paths)
    assert bitsmith.inspect(made.out, verify=True).problems == ()


# -- what was stopped


@pytest.mark.parametrize("opens", ["", "/model.safetensors", "/../m"])
def test_opening_a_folder_that_was_half_replaced_finishes_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: str
) -> None:
    """Where two names cannot be exchanged in one step: stopped when the old folder has no name any more."""
    out = tmp_path / "m"
    bitsmith.quantize(model, to="native/int8", out=out)
    with monkeypatch.context() as patch:
        patch.setattr(renames, "_renameat2", lambda *_: False)
        patch.setattr(journal, "_backward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        named = os.rename

        def stop(old: Path, new: Path) -> None:
            named(old, new)
            if ".work" not in str(old):  # where the new folder was made
                raise KeyboardInterrupt

        patch.setattr(os, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            bitsmith.quantize(model, to="native/int4-g32", out=out, force=True)
    assert not out.exists()
    assert OutputNames.of(out, as_folder=True).journal.exists()
    found = bitsmith.inspect(f"{out}{opens}", verify=True)
    assert found.problems == ()
    assert "int4" in str(found.to_dict())
    before = out.stat().st_ino
    bitsmith.quantize(model, to="native/int4-g32", out=out, force=True)  # the same run again: it is finished already
    assert out.stat().st_ino == before
    assert list(tmp_path.iterdir()) == [out]


# -- room


def test_all_outputs_of_a_run_need_room_together(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is made; a folder that was made for them goes again."""
    planned = bitsmith.quantize_each(model, ["q8_0", "q4_0"], bitsmith.QuantizeConfig(dry_run=True))
    size = sum(each.size for each in planned)
    config = bitsmith.QuantizeConfig(out=tmp_path / "out")
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda _: SimpleNamespace(free=size + (1 << 20) - 1))
    with pytest.raises(FileError, match=f"the 2 outputs together take {size:,} bytes"):
        bitsmith.quantize_each(model, ["q8_0", "q4_0"], config)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda _: SimpleNamespace(free=size + (1 << 20)))
    assert [each.size for each in bitsmith.quantize_each(model, ["q8_0", "q4_0"], config)] == [
        each.size for each in planned
    ]
