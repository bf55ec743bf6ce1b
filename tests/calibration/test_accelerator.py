"""What an accelerator is given: matrices together, and what happens when memory runs short there."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch

from bitsmith.calibration import accelerator, input_hessian, rounding
from bitsmith.calibration.accelerator import rows_within
from bitsmith.calibration.drift import Drift
from bitsmith.calibration.notes import rounding_notes
from bitsmith.calibration.rounding import GptqRounder, gptq_rounder, rounded_group, slabs_of
from bitsmith.calibration.stats import GramMeter, Stats
from bitsmith.errors import TensorError
from bitsmith.quant.formats import get_format
from bitsmith.quant.rounders.effort import EFFORTS
from bitsmith.quant.rounders.hessian import corrected, corrected_directly, correction, prepare

MATRICES = {"attn_q": (40, "int4-g32"), "attn_k": (16, "int4-g32"), "attn_v": (16, "int3-g32-asym")}


def seen(tokens: int = 300, cols: int = 64) -> tuple[Stats, Drift]:
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.standard_normal((tokens, cols)).astype(np.float32))
    meter = GramMeter()
    meter.add(x, x + 0.1 * torch.from_numpy(random.standard_normal((tokens, cols)).astype(np.float32)))
    stats, drift = meter.taken()
    return stats, Drift(drift)


def matrices() -> dict:
    random = np.random.default_rng(1)
    return {
        name: (torch.from_numpy(random.standard_normal((rows, 64)).astype(np.float32)), get_format(format))
        for name, (rows, format) in MATRICES.items()
    }


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU are taken for those of an accelerator."""
    monkeypatch.setattr(GptqRounder, "accelerated", property(lambda self: not self.hessian.moved))


def test_matrices_of_a_format_are_rounded_at_once(accelerated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, original = [], rounding.gptq_each

    def counted(parts, *args, **words):
        sizes.append([len(part) for part in parts])
        return original(parts, *args, **words)

    monkeypatch.setattr(rounding, "gptq_each", counted)
    found = rounded_group(gptq_rounder(seen()[0], None, EFFORTS["normal"]), "blk.0.", matrices())
    assert sizes == [[40, 16], [16]]
    monkeypatch.undo()
    rounder = gptq_rounder(seen()[0], None, EFFORTS["normal"])
    for name, (weight, format) in matrices().items():
        tensor, said = rounder(weight, format)
        assert np.array_equal(found[name][0].codes, tensor.codes)
        assert found[name][1].gptq is not None
        assert said.gptq is not None
        assert found[name][1].gptq.rows == said.gptq.rows == len(weight)
        assert found[name][1].gptq.error == pytest.approx(said.gptq.error)


def test_an_error_names_a_matrix_of_the_group(accelerated: None) -> None:
    given = matrices()
    given["attn_q"][0][3, 3] = torch.nan
    with pytest.raises(TensorError, match=r"blk\.0\.attn_q"):
        rounded_group(gptq_rounder(seen()[0], None, EFFORTS["fast"]), "blk.0.", given)


@pytest.mark.parametrize("most", [40, 20, 16])
def test_out_of_memory_halves_the_slabs(most: int, accelerated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rounder = gptq_rounder(*seen(), EFFORTS["normal"])
    plain = rounded_group(rounder, "blk.0.", matrices())
    original = rounding.gptq_each

    def narrow(parts, *args, **words):
        if sum(map(len, parts)) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(parts, *args, **words)

    monkeypatch.setattr(rounding, "gptq_each", narrow)
    cut = rounded_group(rounder, "blk.0.", matrices())
    for name, (tensor, said) in cut.items():
        assert np.array_equal(tensor.codes, plain[name][0].codes)
        assert all(np.array_equal(tensor.params[key], plain[name][0].params[key]) for key in tensor.params)
        assert not said.moved
    assert cut["attn_q"][1].cut == (most < 40)
    assert any("fewer rows were rounded" in note for note in rounding_notes({n: r for n, (_, r) in cut.items()})) == (
        most < 40
    )


@pytest.mark.parametrize("where", ["prepare", "gptq_each", "corrected_directly"])
def test_what_finds_no_memory_at_all_is_done_by_the_cpu(
    where: str, accelerated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first calls run out of memory, whatever their size; then the same work is done where memory is."""
    given = matrices()
    plain = gptq_rounder(*seen(), EFFORTS["normal"])
    monkeypatch.setattr(GptqRounder, "accelerated", property(lambda self: False))
    expected = {name: plain(*pair) for name, pair in given.items()}
    monkeypatch.setattr(GptqRounder, "accelerated", property(lambda self: not self.hessian.moved))
    room = rounding if where == "gptq_each" else input_hessian
    original, calls = getattr(room, where), count()
    failures = {"prepare": 1, "gptq_each": 6, "corrected_directly": 1}[where]

    def failing(*args, **words):
        if next(calls) < failures:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(*args, **words)

    monkeypatch.setattr(room, where, failing)
    if where != "gptq_each":  # the statistics lie on the device then
        monkeypatch.setattr(input_hessian, "on_accelerator", lambda tensor: True)
    found = rounded_group(gptq_rounder(*seen(), EFFORTS["normal"]), "blk.0.", given)
    assert any(said.moved for _, said in found.values())
    for name, (tensor, _) in found.items():
        assert np.array_equal(tensor.codes, expected[name][0].codes)
    assert any("no memory for the Hessian" in note for note in rounding_notes({n: r for n, (_, r) in found.items()}))


def test_corrections_without_a_matrix_of_the_hessians_size() -> None:
    stats, drift = seen()
    assert stats.gram is not None
    factor = prepare(stats.gram / stats.count)
    w = torch.from_numpy(np.random.default_rng(2).standard_normal((24, 64)).astype(np.float32))
    expected = corrected(w, correction(factor, drift.total / stats.count))
    torch.testing.assert_close(corrected_directly(w, factor, drift.total / stats.count), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(w, expected, atol=1e-2)


def test_slabs_take_all_rows_in_order() -> None:
    slabs = list(slabs_of([5, 3, 9], 7, apart=False))
    assert [[(i, at.start, at.stop) for i, at in slab] for slab in slabs] == [
        [(0, 0, 5), (1, 0, 2)],
        [(1, 2, 3), (2, 0, 6)],
        [(2, 6, 9)],
    ]
    assert [len(slab) for slab in slabs_of([5, 3, 9], 7, apart=True)] == [1, 1, 1, 1]


def test_rows_follow_the_room() -> None:
    assert rows_within(1 << 50, 4096) == accelerator.MOST_ROWS
    assert rows_within(0, 4096) == 256
    fit = rows_within(1 << 30, 4096)
    assert fit % 16 == 0
    assert 256 < fit < accelerator.MOST_ROWS
    assert fit * 8 * 4 * 4096 < 1 << 30
