"""Chunks and the order they are worked on: nothing but the last bits of an error depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.containers.base import Codec
from bitsmith.containers.gptq import GptqCodec
from bitsmith.errors import TensorError
from bitsmith.pipeline import chunks
from bitsmith.pipeline.chunks import Chunk, chunk_rows, chunks_of
from bitsmith.pipeline.encode import Encoded
from bitsmith.pipeline.executor import _in_order
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.plan import PlannedTensor, RowOrder
from bitsmith.system.progress import Progress
from tests.tiny import CONFIG, VOCAB, make_folder, weights

NOTHING = Encoded({}, 0.0, 0.0)


def planned(rows: int, cols: int, *, codec: Codec | None = None, order: RowOrder | None = None) -> PlannedTensor:
    info = TensorInfo("w", (rows, cols), "f32", 4 * rows * cols)
    return PlannedTensor(info, "w", "f32", {}, "", codec=codec, order=order)


def cut(tensor: PlannedTensor, importance: Mapping[str, np.ndarray]) -> list[tuple[int, int, float | None]]:
    """Rows from, rows to and first importance of every chunk."""
    found = list(chunks_of([tensor], importance))
    return [(c.start, c.stop, None if c.importance is None else float(c.importance[0])) for c in found]


def test_no_chunk_crosses_from_one_matrix_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_WEIGHTS", 20)
    assert cut(planned(6, 10), {}) == [(0, 2, None), (2, 4, None), (4, 6, None)]
    two = np.array([[1.0] * 10, [2.0] * 10], np.float32)
    assert cut(planned(6, 10), {"w": two}) == [(0, 2, 1.0), (2, 3, 1.0), (3, 5, 2.0), (5, 6, 2.0)]
    assert list(chunks_of([planned(6, 10)], {}, without={"w"})) == []
    assert cut(planned(0, 10), {"w": two}) == [(0, 0, None)]


def test_a_chunk_holds_whole_heads_and_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_WEIGHTS", 1000)
    codec = GptqCodec(Affine(4, 8, False, "f16"))
    heads = RowOrder(8, True)  # of 24 rows
    assert chunk_rows(planned(192, 8)) == 125
    assert chunk_rows(planned(192, 8, order=heads)) == 120
    assert chunk_rows(planned(192, 8, codec=codec)) == 96
    assert chunk_rows(planned(192, 8, codec=codec, order=heads)) == 96
    assert chunk_rows(planned(192, 4096, codec=codec, order=heads)) == 96


def test_errors_and_progress_add_up_over_chunks(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "whole.gguf").manifest
    monkeypatch.setattr(chunks, "CHUNK_WEIGHTS", 1 << 12)
    seen: list[Progress] = []
    cut = bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "cut.gguf", report=seen.append).manifest
    assert whole is not None
    assert cut is not None
    for one, other in zip(whole.tensors, cut.tensors, strict=True):
        assert other.error == pytest.approx(one.error, rel=1e-9), one.name
    reports = [p for p in seen if p.stage == "quantize"]
    assert max(np.diff([p.done for p in reports])) <= 1 << 12
    assert reports[-1].done == reports[-1].total


@pytest.mark.parametrize("to", ["q8_0", "native/bf16"])
def test_a_damaged_weight_is_named_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    """In a late chunk, whether the tensor is quantized or copied."""
    monkeypatch.setattr(chunks, "CHUNK_WEIGHTS", 1 << 12)
    tensors = weights(CONFIG)
    tensors["lm_head.weight"][VOCAB - 2, 5] = np.inf
    folder = make_folder(tmp_path / "model", tensors=tensors)
    with pytest.raises(
        TensorError, match=rf"lm_head\.weight: inf at row {VOCAB - 2}, column 5; weights must be finite"
    ):
        bitsmith.quantize(folder, to=to, out=tmp_path / "x.gguf")


def test_few_results_wait_and_come_in_order() -> None:
    begun: list[Chunk] = []

    def submit(chunk: Chunk) -> Future[Encoded]:
        begun.append(chunk)
        future: Future[Encoded] = Future()
        future.set_result(NOTHING)
        return future

    pieces = [Chunk(planned(10, 1), at, at + 1) for at in range(10)]
    for given, (chunk, _) in enumerate(_in_order(pieces, submit, ahead=3)):
        assert chunk is pieces[given]
        assert len(begun) - given <= 4
    assert begun == pieces


def test_what_waits_is_cancelled_after_a_failure() -> None:
    futures: list[Future[Encoded]] = []

    def submit(chunk: Chunk) -> Future[Encoded]:
        futures.append(Future())
        if not chunk.start:
            futures[-1].set_exception(TensorError("damaged"))
        return futures[-1]

    pieces = [Chunk(planned(10, 1), at, at + 1) for at in range(10)]
    with pytest.raises(TensorError, match="damaged"):
        list(_in_order(pieces, submit, ahead=3))
    assert [future.cancelled() for future in futures] == [False, True, True, True]
