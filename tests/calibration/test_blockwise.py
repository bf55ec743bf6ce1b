"""The inputs that blocks are rounded for are the inputs that their linears are given."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import bitsmith
from bitsmith.calibration.blockwise import BlockwiseRounding, BlockwiseTask, Rounded
from bitsmith.calibration.collect import decoder_without_blocks, recording
from bitsmith.calibration.inputs import input_of
from bitsmith.calibration.method import Method
from bitsmith.calibration.resources import Resources
from bitsmith.calibration.sources import CalibrationTokens
from bitsmith.calibration.stats import StatsMeter
from bitsmith.models.arch.groups import linear_groups
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.quant.formats import get_format
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import WeightLoader, weight_reader
from bitsmith.system.progress import Report, silent
from tests.tiny import HIDDEN, VOCAB

WINDOWS, CONTEXT = 2, 12


@torch.inference_mode()
def test_the_input_of_every_group(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    config = checkpoint.config
    loader = WeightLoader(config, weight_reader(checkpoint), DenseKernel(), TorchOps(), "cpu")
    decoder, block = decoder_without_blocks(loader), loader.block(0)
    x = torch.randn(WINDOWS, CONTEXT, HIDDEN, generator=torch.Generator().manual_seed(3))
    groups = linear_groups(config)
    widths = {"down_proj_input": config.intermediate}
    meters = {
        name: StatsMeter(widths.get(group.name, HIDDEN), sample=WINDOWS * CONTEXT)
        for group in groups
        for name in group.linears
    }
    out = decoder.run_block(0, recording(block, "blk.0.", meters), x, decoder.place(CONTEXT))
    half = x + block.linears["attn_output"](input_of(decoder, 0, block, "o_proj_input", x))
    for group in groups:
        before = half if group.name in ("ffn_in", "down_proj_input") else x
        found = input_of(decoder, 0, block, group.name, before).reshape(WINDOWS * CONTEXT, -1)
        seen = meters[group.linears[0]].result().sample
        np.testing.assert_array_equal(found.numpy(), seen, err_msg=group.name)
    np.testing.assert_array_equal(
        out, half + block.linears["ffn_down"](input_of(decoder, 0, block, "down_proj_input", half))
    )
    with pytest.raises(ValueError, match="ffn_out is the input of no group"):
        input_of(decoder, 0, block, "ffn_out", x)


def test_blocks_come_in_order(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    tokens = CalibrationTokens("random", np.random.default_rng(5).integers(0, VOCAB, (WINDOWS, CONTEXT)), 0)
    task = BlockwiseTask({"blk.0.attn_q": get_format("q4_0"), "output": get_format("q8_0")}, Method("gptq"))
    rounding = BlockwiseRounding(checkpoint, tokens, task, Resources())
    with pytest.raises(ValueError, match="block 1 was asked for, but block 0 is next"):
        rounding.block(1)
    rounded = rounding.block(0)
    assert [rows.name for rows in rounded.rows] == ["blk.0.attn_q.weight"]
    assert rounded.reports.keys() == {"blk.0.attn_q"}
    with pytest.raises(ValueError, match="the head was asked for, but block 1 is next"):
        next(rounding.head())
    assert rounding.block(1).rows == ()
    assert [(rows.start, len(rows.weight)) for step in rounding.head() for rows in step.rows] == [
        (0, 2048),
        (2048, 2048),
    ]


def test_a_block_is_freed_before_the_next(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[object]] = []
    plain = BlockwiseRounding.block

    def block(self: BlockwiseRounding, layer: int, report: Report = silent) -> Rounded:
        gc.collect()
        assert [seen() for seen in made] == [None] * len(made)
        rounded = plain(self, layer, report)
        made.extend(weakref.ref(rows) for rows in rounded.rows)
        return rounded

    monkeypatch.setattr(BlockwiseRounding, "block", block)
    words = {"calibration": "default", "calibration_tokens": 256, "calibration_context": 64, "device": "cpu"}
    bitsmith.quantize(tiny, to="q4_0", method="gptq", out=tmp_path / "x.gguf", **words)  # type: ignore[arg-type]
    assert len(made) == 14
