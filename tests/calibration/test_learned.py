"""Learned rounding: starts where a rounder left off, lowers the block's own error, and stays in stored precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitsmith.calibration.learned import BlockTuner
from bitsmith.calibration.trainable import Start, TrainableMatrix, learned_ranges
from bitsmith.errors import TensorError, UsageError
from bitsmith.models.arch.config import LINEARS
from bitsmith.quant.formats import FORMATS, get_format
from bitsmith.quant.formats.base import NeedsExtent
from bitsmith.quant.rounders.effort import EFFORTS, Effort
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from bitsmith.runtime.decoder import Decoder
from tests.runtime.small import TINY, decoder_of, random_tensors

SHORT = Effort(steps=24, batch=4, rounding=0.04, scaling=0.005)
WIDE = replace(TINY, layers=1, hidden=256, intermediate=256, heads=2, kv_heads=1, head_dim=128)


def start_of(w: np.ndarray, name: str, importance: np.ndarray | None = None) -> Start:
    format = get_format(name)
    if isinstance(format, NeedsExtent):
        format = format.with_extent(float(w.min()), float(w.max()))
    return Start(w, QuantTensor(format, *nearest(w, format, importance)))


def gaussian(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal((rows, cols)) * 0.1, np.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_unlearned_it_is_the_start(name: str) -> None:
    start = start_of(gaussian(6, 512), name)
    matrix = TrainableMatrix(start)
    frozen = matrix.frozen()
    np.testing.assert_array_equal(frozen.codes, start.tensor.codes)
    for key, value in start.tensor.params.items():
        assert frozen.params[key].dtype == value.dtype
        np.testing.assert_array_equal(frozen.params[key], value)
    np.testing.assert_array_equal(matrix.values().detach().numpy(), start.tensor.values())


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_learned_is_what_is_stored(name: str) -> None:
    matrix = TrainableMatrix(start_of(gaussian(6, 512), name))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for variable in (matrix.offsets, *matrix.changes.values()):
            variable += torch.randn(variable.shape, generator=generator) * 0.2
    frozen = matrix.frozen()
    layout = frozen.format.params_layout(6, 512)
    assert {key: (value.shape, value.dtype) for key, value in frozen.params.items()} == layout
    assert frozen.codes.dtype == np.uint8
    np.testing.assert_array_equal(matrix.values().detach().numpy(), frozen.values())


@pytest.mark.parametrize("name", ["int2-g64", "int3-g128-asym", "nf4", "q2_k", "q3_k", "iq4_xs"])
def test_codes_of_any_rounder_are_kept(name: str) -> None:
    start = start_of(gaussian(6, 512), name)
    levels = len(start.tensor.format.grid(start.tensor.params).table)
    moved = np.random.default_rng(1).integers(-2, 3, start.tensor.codes.shape) + start.tensor.codes
    codes = np.clip(moved, 0, levels - 1).astype(np.uint8)
    matrix = TrainableMatrix(replace(start, tensor=replace(start.tensor, codes=codes)))
    np.testing.assert_array_equal(matrix.frozen().codes, codes)


@pytest.mark.parametrize("name", ["int3-g64", "int2-g64-asym", "nf4", "q2_k", "q3_k"])
def test_gradients_are_those_of_the_unrounded_grid(name: str) -> None:
    """Inside the table, moving an offset moves the value by the gap times the scale; errors shape the scale's."""
    start = start_of(gaussian(4, 256), name)
    matrix = TrainableMatrix(start)
    weight = torch.tensor(gaussian(4, 256, seed=2))
    torch.autograd.backward((matrix.values() * weight).sum())
    grid = start.tensor.format.grid(start.tensor.params)
    scale = np.repeat(grid.scale, 256 // grid.scale.shape[1], axis=1)
    base = 0.0 if grid.offset is None else np.repeat(grid.offset, 256 // grid.scale.shape[1], axis=1)
    unit = (start.weight - base) / scale
    low = np.clip(np.searchsorted(grid.table, unit) - 1, 0, len(grid.table) - 2)
    gap = grid.table[low + 1] - grid.table[low]
    inside = (unit > grid.table[0]) & (unit < grid.table[-1])
    assert matrix.offsets.grad is not None
    np.testing.assert_allclose(
        matrix.offsets.grad.numpy()[inside], (gap * scale * weight.numpy())[inside], rtol=1e-4, atol=1e-7
    )
    for key, change in matrix.changes.items():
        assert change.grad is not None
        assert key == "zero" or change.grad.abs().sum() > 0  # between the ends of the table a zero point moves nothing


def test_parameters_shared_by_rows_do_not_learn() -> None:
    layout = get_format("int4-tensor").params_layout(4, 64)
    assert learned_ranges(get_format("int4-tensor"), layout) == {}
    assert learned_ranges(get_format("int4-g64"), layout) == {"scale": None}
    matrix = TrainableMatrix(start_of(gaussian(4, 64), "int4-tensor"))
    assert not matrix.changes


def block_problem(name: str) -> tuple[Decoder, dict[str, Start], np.ndarray, np.ndarray]:
    """A decoder of one block, the starts of its linears, inputs, and what the block gives for them."""
    tensors = random_tensors(WIDE)
    for key in tensors:
        if tensors[key].ndim == 2:
            tensors[key] *= 0.2
    decoder = decoder_of(WIDE, tensors)
    generator = np.random.default_rng(5)
    x = generator.standard_normal((20, 24, 12)) @ generator.standard_normal((12, WIDE.hidden))
    x = x.astype(np.float32)
    with torch.no_grad():
        shared = decoder.place(x.shape[1])
        y = decoder.run_block(0, decoder.weights.blocks[0], torch.tensor(x), shared).numpy()
    return decoder, {each: start_of(tensors[f"blk.0.{each}.weight"], name) for each in LINEARS}, x, y


@pytest.mark.parametrize("name", ["int3-g64", "int2-g64-asym", "q2_k", "nf4"])
def test_a_tuned_block_is_nearer_to_the_original(name: str) -> None:
    decoder, starts, x, y = block_problem(name)
    tuned = BlockTuner(decoder, 0, decoder.weights.blocks[0], SHORT).tune(starts, x, y)
    assert tuned.step > 0
    assert tuned.loss_after < 0.95 * tuned.loss_before
    assert set(tuned.tensors) == set(starts)
    assert tuned.loss_after == pytest.approx(relative_error(decoder, tuned.tensors, x[::16], y[::16]), rel=1e-4)
    assert tuned.loss_before == pytest.approx(
        relative_error(decoder, {k: s.tensor for k, s in starts.items()}, x[::16], y[::16]), rel=1e-4
    )


def relative_error(decoder: Decoder, tensors: Mapping[str, QuantTensor], x: np.ndarray, y: np.ndarray) -> float:
    """The same, through plain dense weights."""
    block = decoder.weights.blocks[0]
    dense = {
        name: replace(block.linears[name], prepared=torch.tensor(tensor.values())) for name, tensor in tensors.items()
    }
    with torch.no_grad():
        shared = decoder.place(x.shape[1])
        out = decoder.run_block(0, block.with_linears(dense), torch.tensor(x), shared).numpy()
    return float((np.square(out - y).sum(-1) / np.square(y).sum(-1)).mean())


def test_same_seed_same_result_another_seed_another() -> None:
    decoder, starts, x, y = block_problem("int2-g64")
    block = decoder.weights.blocks[0]
    first, again, other = (
        BlockTuner(decoder, 0, block, replace(SHORT, steps=6), seed=seed).tune(starts, x, y) for seed in (0, 0, 1)
    )
    for name, tensor in first.tensors.items():
        np.testing.assert_array_equal(tensor.codes, again.tensors[name].codes)
        for key, values in tensor.params.items():
            np.testing.assert_array_equal(values, again.tensors[name].params[key])
    assert first.loss_after == again.loss_after
    assert any(not np.array_equal(first.tensors[k].codes, other.tensors[k].codes) for k in starts)


def test_a_harmful_step_is_not_kept() -> None:
    decoder, starts, x, y = block_problem("int3-g64")
    wild = Effort(steps=3, batch=2, rounding=2.0, scaling=0.9)
    tuned = BlockTuner(decoder, 0, decoder.weights.blocks[0], wild).tune(starts, x, y)
    assert tuned.step == 0
    assert tuned.loss_after == tuned.loss_before
    assert all(np.array_equal(tuned.tensors[name].codes, starts[name].tensor.codes) for name in starts)


def test_where_codes_gain_nothing_parameters_learn_alone() -> None:
    decoder, starts, x, y = block_problem("int4-g64")
    wild = Effort(steps=24, batch=4, rounding=200.0, scaling=0.005)  # every code is lost in the first step
    tuned = BlockTuner(decoder, 0, decoder.weights.blocks[0], wild).tune(starts, x, y)
    assert tuned.step > wild.steps // 4
    assert tuned.loss_after < tuned.loss_before
    assert all(np.array_equal(tuned.tensors[name].codes, starts[name].tensor.codes) for name in starts)
    assert any(not np.array_equal(tuned.tensors[k].params["scale"], starts[k].tensor.params["scale"]) for k in starts)
    assert tuned.loss_after == pytest.approx(relative_error(decoder, tuned.tensors, x[::16], y[::16]), rel=1e-4)


def test_linears_that_are_not_named_stay() -> None:
    decoder, starts, x, y = block_problem("int2-g64")
    one = {"ffn_down": starts["ffn_down"]}
    tuned = BlockTuner(decoder, 0, decoder.weights.blocks[0], SHORT).tune(one, x, y)
    assert set(tuned.tensors) == {"ffn_down"}
    tensors = {"ffn_down": starts["ffn_down"].tensor}
    assert tuned.loss_before == pytest.approx(relative_error(decoder, tensors, x[::16], y[::16]), rel=1e-4)


def test_one_window_is_trained_on_and_judged() -> None:
    decoder, starts, x, y = block_problem("int2-g64")
    tuned = BlockTuner(decoder, 0, decoder.weights.blocks[0], SHORT).tune(starts, x[:1], y[:1])
    assert tuned.loss_after < tuned.loss_before


def test_wrong_calls_say_what_is_wrong() -> None:
    decoder, starts, x, y = block_problem("int2-g64")
    tuner = BlockTuner(decoder, 0, decoder.weights.blocks[0], SHORT)
    with pytest.raises(UsageError, match="attn_x"):
        tuner.tune({"attn_x": starts["attn_q"]}, x, y)
    with pytest.raises(UsageError, match="windows"):
        tuner.tune(starts, x, y[:4])
    with pytest.raises(UsageError, match=r"attn_v.*\[128, 256\]"):
        tuner.tune({"attn_v": starts["attn_q"]}, x, y)
    bad = x.copy()
    bad[0, 0, 0] = np.nan
    with pytest.raises(TensorError, match="block 0"):
        tuner.tune(starts, bad, y)


def test_efforts_grow() -> None:
    tokens = [EFFORTS[name].steps * EFFORTS[name].batch for name in ("fast", "normal", "high")]
    assert tokens == sorted(set(tokens))
