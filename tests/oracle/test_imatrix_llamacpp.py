"""Importance against llama.cpp: its program's figures on the same windows, and its Python package's view of our files.

The figures are llama-imatrix's (build 11434, one thread, `-c 256 -b 256 --no-ppl --process-output`) on this project's
LICENSE file with the reference model in float32.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from bitsmith.calibration.imatrix import read_imatrix
from bitsmith.calibration.run import make_imatrix

LICENSE = Path(__file__).parents[2] / "LICENSE"

# sum of mean squares over columns, the largest column and its mean square, the first column's
FIGURES = {
    "blk.0.attn_q": (7.87901, 201, 0.13749, 0.013225),
    "blk.0.attn_output": (0.20235, 51, 0.00712, 0.000981),
    "blk.3.ffn_up": (74.76311, 7, 2.30008, 0.418637),
    "blk.7.attn_k": (167.48083, 67, 17.30392, 0.379782),
    "blk.7.ffn_down": (3514.84819, 412, 90.88783, 11.498851),
    "output": (758.09298, 67, 104.08607, 1.463271),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "im.gguf"
    make_imatrix("reference", out=path, calibration=str(LICENSE), calibration_context=256)
    return path


@pytest.mark.parametrize("name", FIGURES)
def test_importance_is_llama_imatrixs(made: Path, name: str) -> None:
    entry = read_imatrix(made).entries[f"{name}.weight"]
    total, place, largest, first = FIGURES[name]
    importance = entry.importance[0]
    assert entry.counts.tolist() == [12 * 256]
    assert importance.argmax() == place
    assert importance.sum(dtype=np.float64) == pytest.approx(total, rel=5e-4)
    assert importance[place] == pytest.approx(largest, rel=2e-3)
    assert importance[0] == pytest.approx(first, rel=2e-3)


def test_its_package_reads_our_file(made: Path) -> None:
    reader = gguf.GGUFReader(made)
    assert reader.fields["general.type"].contents() == gguf.GGUFType.IMATRIX
    assert reader.fields[gguf.Keys.IMatrix.DATASETS].contents() == ["LICENSE"]
    assert reader.fields[gguf.Keys.IMatrix.CHUNK_COUNT].contents() == 12
    assert reader.fields[gguf.Keys.IMatrix.CHUNK_SIZE].contents() == 256
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * (7 * 8 + 1)
    for name, entry in read_imatrix(made).entries.items():
        np.testing.assert_array_equal(tensors[f"{name}.in_sum2"].data, entry.sums)
        assert tensors[f"{name}.in_sum2"].shape.tolist() == [entry.sums.shape[1], 1]
        assert tensors[f"{name}.counts"].shape.tolist() == [1, 1]


def test_we_read_its_packages_file(tmp_path: Path) -> None:
    """As llama-imatrix writes it: sums of values and statistics beside the sums of squares."""
    writer = gguf.GGUFWriter(tmp_path / "im.gguf", arch="")
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, ["a.txt", "b.txt"])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, 3)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, 64)
    sums = np.arange(12, dtype=np.float32).reshape(2, 6)
    name = "blk.0.ffn_up_exps.weight"
    writer.add_tensor(f"{name}.in_sum2", sums)
    writer.add_tensor(f"{name}.counts", np.array([[4], [0]], np.float32))
    writer.add_tensor(f"{name}.in_sum", sums)
    writer.add_tensor(f"{name}.stats", np.zeros(12, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_imatrix(tmp_path / "im.gguf")
    assert (found.datasets, found.chunks, found.chunk_size) == (("a.txt", "b.txt"), 3, 64)
    assert [*found.entries] == [name]
    np.testing.assert_array_equal(found.entries[name].importance, [sums[0] / 4, np.ones(6)])
