"""Batches that are computed in pieces where memory does not suffice: the same bytes, and a note."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitsmith.calibration.pieces import Pieces
from bitsmith.calibration.stats import GramMeter
from bitsmith.quant.rounders.effort import EFFORTS

torch = pytest.importorskip("torch")


def short(message: str = "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.") -> RuntimeError:
    return RuntimeError(message)


def test_a_piece_that_fails_is_halved_and_what_came_through_is_not_done_again() -> None:
    pieces, seen = Pieces(), []

    def step(at: slice) -> None:
        if at.stop - at.start > 2:
            raise short()
        seen.append((at.start, at.stop))

    pieces.run(slice(4, 11), step)
    assert seen == [(4, 6), (6, 8), (8, 10), (10, 11)]
    assert pieces.parts == 4
    assert pieces.take_notes() == (
        "memory ran short, so batches of windows were computed in 4 pieces; the result is the same",
    )
    assert pieces.take_notes() == ()


def test_a_single_window_that_finds_no_memory_is_an_error() -> None:
    def step(at: slice) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        Pieces().run(slice(0, 4), step)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")])
def test_other_errors_are_not_retried(error: Exception) -> None:
    pieces = Pieces()

    def step(at: slice) -> None:
        raise error

    with pytest.raises(type(error)):
        pieces.run(slice(0, 4), step)
    assert pieces.parts == 1


def test_work_is_called_again_in_smaller_pieces() -> None:
    pieces, calls = Pieces(), []

    def work() -> int:
        calls.append(pieces.parts)
        if pieces.parts < 4:
            raise short("CUDA out of memory. Tried to allocate 2 GiB")
        return 7

    assert pieces.again(work, 4) == 7
    assert calls == [1, 2, 4]


@pytest.mark.parametrize("cut", [(300, 700), (512, 512), (1, 1023), (511, 2, 511)])
def test_sums_of_pieces_are_those_of_the_batch(cut: tuple[int, ...]) -> None:
    rows = np.random.default_rng(0).standard_normal((sum(cut), 48)).astype(np.float32)
    whole, cuts = GramMeter(), GramMeter()
    for _ in range(2):
        whole.add(torch.from_numpy(rows))
        for part in np.split(rows, np.cumsum(cut)[:-1]):
            cuts.piece(torch.from_numpy(part))
        cuts.end()
    assert whole.count == cuts.count
    assert np.array_equal(whole.result().gram, cuts.result().gram)


@pytest.mark.parametrize("method", ["gptq", "awq", "nearest"])
def test_a_run_short_of_memory_writes_the_same_bytes(
    method: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pass through a part of a block fails once in a while, at any of its operations."""
    import bitsmith
    from bitsmith.runtime.torch.core_ops import pass_ops

    how = {"to": "gptq/int4", "group_size": 32, "method": method, "calibration": "default"}
    how |= {"calibration_tokens": 6000, "calibration_context": 100}
    plain = bitsmith.quantize(tiny, out=tmp_path / "plain", **how)
    calls, ops = {"all": 0, "failed": 0}, type(pass_ops("cpu"))

    def failing(name: str) -> None:
        original = getattr(ops, name)

        def once_in_a_while(*args: object, **words: object) -> object:
            calls["all"] += 1
            if calls["all"] % 7 == 0 and calls["failed"] < 3:
                calls["failed"] += 1
                raise short()
            return original(*args, **words)

        monkeypatch.setattr(ops, name, once_in_a_while)

    for name in ("rms_norm", "attention", "gated"):
        failing(name)
    cut = bitsmith.quantize(tiny, out=tmp_path / "cut", **how)
    assert calls["failed"] == 3
    assert [t.sha256 for t in cut.manifest.tensors] == [t.sha256 for t in plain.manifest.tensors]
    assert any("memory ran short" in note for note in cut.notes)
    assert not any("memory ran short" in note for note in plain.notes)


@pytest.mark.parametrize("trained", [False, True], ids=["learned", "training"])
def test_steps_that_find_no_memory_are_computed_in_pieces(
    trained: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are summed in another order then, so bytes may differ a little, and the note says so."""
    import bitsmith
    from bitsmith.runtime.torch.core_ops import pass_ops

    how = {"to": "q4_0", "method": "gptq" if trained else "learned", "calibration_tokens": 2048}
    how |= {"calibration_context": 64} | ({"steps": 3, "training_tokens": 2048} if trained else {"effort": "fast"})
    few = replace(EFFORTS["fast"], steps=2)  # in more, last bits may become other codes
    monkeypatch.setitem(EFFORTS, "fast", few)
    make = bitsmith.tune_qat if trained else bitsmith.quantize
    plain = make(tiny, out=tmp_path / "plain.gguf", **how)
    failed, ops = [0], type(pass_ops("cpu"))
    for each in {ops, *ops.__mro__}:
        if "rms_norm" in vars(each):
            original = vars(each)["rms_norm"]

            def failing(self: object, x: object, *args: object, original: object = original) -> object:
                if torch.is_grad_enabled() and getattr(x, "requires_grad", False) and failed[0] < 2:
                    failed[0] += 1
                    raise short()
                return original(self, x, *args)  # type: ignore[operator]

            monkeypatch.setattr(each, "rms_norm", failing)
    cut = make(tiny, out=tmp_path / "cut.gguf", **how)
    assert failed == [2]
    assert any("steps of learned rounding and training were computed in 4 pieces" in note for note in cut.notes)
    assert any("last bits of the result may differ" in note for note in cut.notes)
    errors = [[each.error for each in made.manifest.tensors] for made in (plain, cut)]
    assert np.allclose(*errors, rtol=1e-3, atol=1e-6)


def test_rows_that_find_no_memory_are_rounded_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsmith.calibration import rounding
    from bitsmith.calibration.notes import rounding_notes
    from bitsmith.calibration.rounding import gptq_rounder
    from bitsmith.quant.formats import get_format

    random = np.random.default_rng(0)
    meter = GramMeter()
    meter.add(torch.from_numpy(random.standard_normal((400, 64)).astype(np.float32)))
    rounder = gptq_rounder(meter.result(), None, EFFORTS["normal"])
    weight, format = torch.from_numpy(random.standard_normal((200, 64)).astype(np.float32)), get_format("int4-g32")
    plain, said = rounder(weight, format)
    original = rounding.gptq_each

    def narrow(parts: list[torch.Tensor], *args: object, **words: object) -> object:
        if sum(map(len, parts)) > 64:
            raise short()
        return original(parts, *args, **words)

    monkeypatch.setattr(rounding, "gptq_each", narrow)
    cut, told = rounder(weight, format)
    assert np.array_equal(plain.codes, cut.codes)
    assert all(np.array_equal(plain.params[name], cut.params[name]) for name in plain.params)
    assert (said.cut, told.cut) == (False, True)
    assert any("fewer rows were rounded" in note for note in rounding_notes({"blk.0.attn_q": told}))
