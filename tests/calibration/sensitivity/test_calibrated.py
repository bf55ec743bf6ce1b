"""What GPTQ gains, type by type: which matrices are measured, and which stand for others."""

from __future__ import annotations

import numpy as np
import pytest

import bitsmith
from bitsmith.calibration.sensitivity.calibrated import GptqGains
from bitsmith.calibration.stats import Stats, StatsMeter
from bitsmith.quant.formats.base import Format
from bitsmith.recipe.plan import PlannedTensor

TYPES = ("q4_0", "q4_1", "iq2_xs", "iq3_s", "q8_0")


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlannedTensor, ...]:
    """One matrix in each type."""
    found = []
    for name in TYPES:
        out = tmp_path_factory.mktemp("plan") / "out.gguf"
        options = {"calibration": "default"} if name.startswith("iq") else {}
        planned = bitsmith.quantize("reference", to=name, pure=True, out=out, dry_run=True, **options)
        found.append(next(each for each in planned.plan.tensors if each.info.name == "blk.0.ffn_up.weight"))
    return tuple(found)


def inputs(cols: int) -> Stats:
    """Statistics of inputs whose neighbours are alike, so that GPTQ has something to gain."""
    x = np.cumsum(np.random.default_rng(0).standard_normal((4 * cols, cols)), axis=1).astype(np.float32)
    meter = StatsMeter(cols, gram=True)
    meter.add(x)
    return meter.result()


def test_types_gain_by_themselves(tensors: tuple[PlannedTensor, ...]) -> None:
    w = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
    known = inputs(256)
    found = GptqGains({"blk.0.ffn_up": known}).of("blk.0.ffn_up", w, tensors)
    assert found[-1] == 1.0  # eight bits are not rounded by GPTQ
    assert found[2] == found[3]  # a code book stands for all
    assert (found[:-1] < 0.9).all()
    assert len(set(found)) == 4
    assert GptqGains({}).of("blk.0.ffn_up", w, tensors).tolist() == [1.0] * 5


def test_one_block_of_three_is_measured(tensors: tuple[PlannedTensor, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Format] = []

    def gain(self: GptqGains, rows: np.ndarray, format: Format, stats: Stats) -> float:
        measured.append(format)
        return 1 / (1 + len(measured))

    monkeypatch.setattr(GptqGains, "_gain", gain)
    names = [f"blk.{block}.{matrix}" for block in range(7) for matrix in ("attn_q", "ffn_up")]
    known, w = inputs(8), np.ones((4, 8), np.float32)
    gains = GptqGains(dict.fromkeys([*names, "output"], known))
    found = [gains.of(name, w, tensors) for name in names]
    assert len(measured) == 3 * 2 * 3  # blocks 0, 3 and 6; two matrices; q4_0, q4_1 and one code book
    for at in (2, 4):  # the same matrices of the blocks behind
        assert (found[at] == found[0]).all()
        assert (found[at + 1] == found[1]).all()
    assert (found[6] != found[0]).any()
    gains.of("output", w, tensors)
    assert len(measured) == 21
