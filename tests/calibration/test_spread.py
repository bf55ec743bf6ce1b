"""`imatrix` on several workers: the same bytes for every number of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.calibration import parts
from bitsmith.calibration.imatrix import read_imatrix
from bitsmith.errors import FileError, UsageError
from bitsmith.scale import working
from bitsmith.scale.store import FolderStore
from tests.families import folder_of


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and the dog sleeps on in the sun.\n" * 200)
    return path


def made(model: Path, out: Path, text: Path, **words: Any) -> bytes:
    bitsmith.imatrix(model, out=out, calibration=text, calibration_tokens=1024, calibration_context=64, **words)
    return out.read_bytes()


def test_a_part_alone_is_a_run_without_workers(tiny: Path, prose: Path, tmp_path: Path) -> None:
    alone = made(tiny, tmp_path / "a.gguf", prose)
    assert made(tiny, tmp_path / "b.gguf", prose, executor="local") == alone
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "b"))) == ["b.gguf"]


def test_parts_are_added_in_their_order(
    tiny: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = made(tiny, tmp_path / "a.gguf", prose)
    monkeypatch.setattr(parts, "PART_TOKENS", 256)
    monkeypatch.setattr(parts, "BATCH_TOKENS", 128)
    one = made(tiny, tmp_path / "b.gguf", prose, executor="local")
    assert made(tiny, tmp_path / "c.gguf", prose, executor="local", workers=2, work=str(tmp_path / "work")) == one
    assert not any((tmp_path / "work").iterdir())
    first, second = read_imatrix(tmp_path / "a.gguf"), read_imatrix(tmp_path / "b.gguf")
    assert len(one) == len(alone)
    for name, entry in first.entries.items():
        np.testing.assert_allclose(second.entries[name].sums, entry.sums, rtol=1e-6)
        np.testing.assert_array_equal(second.entries[name].counts, entry.counts)


def test_experts_are_counted_over_all_parts(prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_moe, _ = folder_of("qwen3_moe", tmp_path / "moe")
    words = {"calibration": prose, "calibration_tokens": 1024, "calibration_context": 64}
    alone = bitsmith.imatrix(tiny_moe, out=tmp_path / "a.gguf", **words)
    monkeypatch.setattr(parts, "PART_TOKENS", 256)
    monkeypatch.setattr(parts, "BATCH_TOKENS", 128)
    found = bitsmith.imatrix(tiny_moe, out=tmp_path / "b.gguf", executor="local", **words)
    assert found.to_dict()["experts"] == alone.to_dict()["experts"]


def test_a_run_that_storage_stopped_goes_on(
    tiny: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_TOKENS", 256)
    monkeypatch.setattr(parts, "BATCH_TOKENS", 128)
    whole = made(tiny, tmp_path / "a.gguf", prose, executor="local")
    wrote, original = [], FolderStore.write

    def full(store: FolderStore, key: str, values: Any, arrays: Any) -> None:
        wrote.append(key)
        if len(wrote) == 5:  # the text, the graph and two parts are there
            raise FileError("work: results cannot be written (No space left on device)")
        original(store, key, values, arrays)

    monkeypatch.setattr(FolderStore, "write", full)
    with pytest.raises(FileError, match="No space left"):
        made(tiny, tmp_path / "b.gguf", prose, executor="local")
    monkeypatch.setattr(FolderStore, "write", original)
    ran: list[str] = []
    run_task = working.run_task

    def counted(task: Any, *rest: Any) -> None:
        ran.append(task.name)
        run_task(task, *rest)

    monkeypatch.setattr("bitsmith.scale.results.run_task", counted)
    assert made(tiny, tmp_path / "b.gguf", prose, executor="local") == whole
    assert 0 < len(ran) < 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"executor": "slurm"}, "is for quantize and convert"),
        ({"executor": "local", "device": "cuda"}, "workers are CPUs"),
        ({"workers": 2}, "there is no"),
    ],
)
def test_what_workers_cannot_do(tiny: Path, prose: Path, tmp_path: Path, words: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made(tiny, tmp_path / "a.gguf", prose, **words)


def test_a_file_is_only_converted(tiny: Path, prose: Path, tmp_path: Path) -> None:
    made(tiny, tmp_path / "a.gguf", prose)
    with pytest.raises(UsageError, match="only converted"):
        bitsmith.imatrix(tiny, out=tmp_path / "b.dat", calibration=tmp_path / "a.gguf", executor="local")
