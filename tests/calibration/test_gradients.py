"""Steps of learned rounding: captured once and replayed, in pieces where memory is short, never another result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from bitsmith.calibration import gradients, learned
from bitsmith.calibration.gradients import Gradients
from bitsmith.calibration.learned import BlockTuner, Tuned
from bitsmith.calibration.trainable import TrainableMatrix
from tests.calibration.test_learned import SHORT, block_problem, gaussian, start_of

FEW = replace(SHORT, steps=6)


def tuned(name: str = "int3-g64") -> Tuned:
    decoder, starts, x, y = block_problem(name)
    return BlockTuner(decoder, 0, decoder.weights.blocks[0], FEW).tune(starts, x, y)


def same(a: Tuned, b: Tuned) -> bool:
    return a.loss_after == b.loss_after and all(
        np.array_equal(tensor.codes, b.tensors[name].codes)
        and all(np.array_equal(tensor.params[key], b.tensors[name].params[key]) for key in tensor.params)
        for name, tensor in a.tensors.items()
    )


def test_replayed_steps_give_what_plain_steps_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is played by calling the work again, on the buffers that it was captured on."""
    plain, captured = tuned(), []

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        captured.append(work)
        work()  # as a capture does after its warm-up: what it leaves is overwritten by each replay
        return work

    monkeypatch.setattr(learned, "captures", lambda device: capture)
    found = tuned()
    assert len(captured) == 1
    assert same(plain, found)
    assert found.notes == ()


def test_steps_that_cannot_be_captured_run_plainly_and_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(work: Callable[[], None]) -> Callable[[], None]:
        work()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    plain = tuned()
    monkeypatch.setattr(learned, "captures", lambda device: capture)
    found = tuned()
    assert same(plain, found)
    assert found.notes == ("learned rounding ran operation by operation, because CUDA could not capture its steps",)


def test_memory_that_is_short_halves_the_batch() -> None:
    """`torch.OutOfMemoryError` until at most two windows are computed at once; also inside of a capture."""
    weight, x = torch.randn(5, 3, requires_grad=True), torch.randn(8, 4, 5)
    sizes: list[int] = []

    def loss(given: torch.Tensor, wanted: torch.Tensor, windows: np.ndarray) -> torch.Tensor:
        sizes.append(len(given))
        if len(given) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return ((given @ weight - wanted) ** 2).mean()

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        work()
        return work

    windows, wanted = np.array([0, 2, 3, 5, 7]), torch.zeros(8, 4, 3)
    for each in (None, capture):
        sizes.clear()
        step = Gradients(lambda at: (x[at], wanted[at]), loss, (weight,), each)
        step(windows)
        found = weight.grad
        (expected,) = torch.autograd.grad(((x[windows] @ weight) ** 2).mean(), weight)
        torch.testing.assert_close(found, expected)
        assert step.pieces.parts == 4
        assert sizes == [5, 3, 2, 2, 1]
        (note,) = step.pieces.take_notes()
        assert "4 pieces" in note


def test_a_single_window_that_finds_no_memory_is_an_error() -> None:
    def loss(*given: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    x = torch.zeros(4, 2)
    with pytest.raises(torch.OutOfMemoryError):
        Gradients(lambda at: (x[at], x[at]), loss, (torch.zeros(1),))(np.arange(4))


@pytest.mark.parametrize("name", ["int3-g64", "int2-g64-asym", "int4-channel", "nf4", "q2_k", "q4_k", "q4_0"])
def test_a_matrix_that_learns_never_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values stand for those of a device; a question about one raises. Tables were asked before."""
    from bitsmith.calibration import trainable

    matrix = TrainableMatrix(start_of(gaussian(6, 512), name))
    grid = matrix._grid()
    even = trainable._even(grid.table)
    monkeypatch.setattr(trainable, "_even", lambda table: even)
    monkeypatch.setattr(trainable.Fused, "of", lambda *given: None)  # of a CPU alone
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.autograd.backward(matrix.values().sum())
    monkeypatch.undo()
    with pytest.raises(DataDependentOutputException), FakeTensorMode(allow_non_fake_inputs=True):
        matrix.values()  # the same with the question


def test_a_step_of_a_block_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss and its backward pass, on tensors without values: a CUDA graph can hold them."""
    from bitsmith.calibration import trainable

    decoder, starts, *windows = block_problem("int3-g64")
    tuner = BlockTuner(decoder, 0, decoder.weights.blocks[0], FEW)
    matrices = {name: learned._trainable(start, "cpu") for name, start in starts.items()}
    monkeypatch.setattr(trainable, "_even", lambda table: True)
    monkeypatch.setattr(trainable.Fused, "of", lambda *given: None)  # of a CPU alone
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = tuner._gradients(tuner._with(matrices), matrices, *windows)
        x, wanted = torch.empty(4, *windows[0].shape[1:]), torch.empty(4, *windows[0].shape[1:])
        with torch.enable_grad():
            loss = step.loss(x, wanted, np.arange(4))
        torch.autograd.backward(loss)


def test_nothing_is_captured_on_a_cpu() -> None:
    assert gradients.captures(torch.device("cpu")) is None
    assert gradients.captures(torch.device("cuda")) is gradients.cuda_capture
