"""Mixes of one to three bits: importance where it is needed, fallbacks, what is written and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.calibration.imatrix import Entry, Imatrix, imatrix_file
from bitsmith.containers.gguf.metadata_values import u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.errors import FileError, UsageError
from tests.gguf_files import Stored, write_gguf


def write_importance(path: Path, entries: dict[str, Entry]) -> Path:
    layout, arrays = imatrix_file(Imatrix(entries, ("made up",), 1, 512), path.name)
    content = bytearray(layout.size)
    content[: len(layout.header)] = layout.header
    for region in layout.regions:
        content[region.offset : region.offset + region.nbytes] = arrays[region.tensor].tobytes()
    path.write_bytes(content)
    return path


def whole_importance(path: Path, *, without: str = "") -> Path:
    """Importance of all matrices of the blocks of the reference model."""
    plan = bitsmith.quantize("reference", to="q4_0", dry_run=True).plan
    rng = np.random.default_rng(0)
    entries = {
        each.info.name: Entry(rng.random((1, each.info.cols)).astype(np.float32), np.array([512], np.int64))
        for each in plan.tensors
        if each.info.name.startswith("blk.") and len(each.info.shape) > 1 and each.info.name != without
    }
    return write_importance(path, entries)


@pytest.mark.parametrize(("to", "needed"), [("iq2_xxs", True), ("iq1_m", True), ("q2_k_s", True), ("iq3_s", False)])
def test_the_built_in_text_serves_where_importance_is_needed(tmp_path: Path, to: str, needed: bool) -> None:
    planned = bitsmith.quantize("reference", to=to, out=tmp_path / "out.gguf", dry_run=True)
    assert (planned.calibration is not None) == needed
    assert any("needs importance" in str(warning) for warning in planned.plan.warnings) == needed
    assert planned.method == ("gptq" if needed else "nearest")


def test_an_importance_file_that_lacks_a_matrix_is_refused(tmp_path: Path) -> None:
    name = "blk.3.attn_q.weight"
    given = whole_importance(tmp_path / "some.gguf", without=name)
    with pytest.raises(UsageError, match=rf"no entry for {name}.*need importance"):
        bitsmith.quantize("reference", to="iq2_xs", out=tmp_path / "out.gguf", calibration=given)


@pytest.mark.parametrize("to", ["iq2_xs", "iq3_xxs"])
def test_bytes_depend_on_nothing_but_the_input(tmp_path: Path, to: str) -> None:
    given = whole_importance(tmp_path / "all.gguf")
    made = [
        bitsmith.quantize("reference", to=to, out=tmp_path / f"{threads}.gguf", calibration=given, threads=threads)
        for threads in (1, 3)
    ]
    assert made[0].method == "nearest"
    a, b = (each.paths[0].read_bytes() for each in made)
    assert a == b
    with GgufSource(made[0].paths[0]) as source:
        kinds = {info.layout for info in source.tensors.values()}
        assert to in kinds
        assert np.isfinite(source.rows("blk.0.attn_q.weight")).all()


def test_q2_0_of_other_programs_is_refused(tmp_path: Path) -> None:
    """The same number for blocks that take more bytes."""
    path = tmp_path / "legacy.gguf"
    room = np.zeros((1, 8 * 34), np.uint8)
    write_gguf(path, {"general.alignment": u32(32)}, {"w": Stored("q2_0", (8, 64), room[:, : 8 * 18])})
    with GgufSource(path) as source:
        assert source.tensors["w"].layout == "q2_0"
    path.write_bytes(path.read_bytes() + bytes(8 * 16))
    with pytest.raises(FileError, match="blocks of 64"):
        GgufSource(path)
