"""`quantize` of checkpoints that were trained for a format: their values are kept, and it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import bitsmith
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.quant.formats import get_format
from bitsmith.quant.rounders.nearest import nearest
from tests import tiny as small
from tests.cli.command import Command

QUICK: dict[str, Any] = {"calibration_tokens": 512, "calibration_context": 64, "threads": 1}
LINEARS = 14  # of the tiny model's two blocks


def trained_for(folder: Path, name: str) -> Path:
    """A tiny checkpoint in bfloat16 whose linears in blocks lie on a format's grid, but for the last row of one."""
    format, tensors = get_format(name), small.weights(small.CONFIG)
    for key, values in tensors.items():
        if "proj" in key:
            codes, params = nearest(values.astype(np.float32), format, np.ones(values.shape[1], np.float32))
            tensors[key] = format.grid(params).values(codes).astype(ml_dtypes.bfloat16)
    return small.make_folder(folder, tensors=tensors)


@pytest.mark.parametrize(
    ("name", "to", "options"),
    [
        ("q4_0", "q4_0", {"pure": True}),
        ("q4_0", "q4_0", {"method": "gptq", **QUICK}),
        ("q4_0", "q4_0", {"method": "learned", "effort": "fast", **QUICK}),
        ("mxfp4", "native/mxfp4", {}),
        ("int4-g32", "native/int4-g32", {"method": "gptq", **QUICK}),
        ("int4-g32-asym", "awq/int4", {"group_size": 32}),
        ("int4-g32", "compressed/w4a16", {"group_size": 32}),
    ],
)
def test_values_are_kept(tmp_path: Path, name: str, to: str, options: dict[str, Any]) -> None:
    source = trained_for(tmp_path / "source", name)
    out = tmp_path / ("out" if "/" in to else "out.gguf")
    made = bitsmith.quantize(source, to=to, out=out, **options)
    assert len(made.recovered) == LINEARS
    assert any(f"{LINEARS} of " in note and "kept exactly" in note for note in made.notes)
    assert made.to_dict()["recovered_tensors"] == list(made.recovered)
    assert made.manifest is not None
    assert json.loads(made.manifest.recipe)["recovered_tensors"] == LINEARS
    before, after = (open_checkpoint(path).laid_out("gguf") for path in (source, out))
    for layer in range(2):
        for kind in ("attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_down"):
            full = f"blk.{layer}.{kind}.weight"
            wanted, found = (each.source.rows(each.place(full)) for each in (before, after))
            if kind == "attn_q" and to == "q4_0":
                continue  # its rows have another order
            assert np.array_equal(found.astype(ml_dtypes.bfloat16), wanted.astype(ml_dtypes.bfloat16)), full


def test_the_terminal_says_so(tmp_path: Path, bitsmith_command: Command) -> None:
    source = trained_for(tmp_path / "source", "q4_0")
    result = bitsmith_command("quantize", source, "--to", "q4_0", "--out", tmp_path / "a.gguf")
    assert result.code == 0, result
    assert "quantized tensors lie on the grid of q4_0 already" in result.out
    said = bitsmith_command("inspect", tmp_path / "a.gguf", "--recipe")
    assert '"recovered_tensors": 14' in said.out
    assert "bitsmith quantize" in said.out


def test_rows_off_the_grid_are_rounded(tmp_path: Path) -> None:
    source = trained_for(tmp_path / "source", "int4-g32")
    tensors = small.weights(small.CONFIG)
    folder = small.make_folder(tmp_path / "mixed", tensors=_mixed(source, tensors))
    made = bitsmith.quantize(folder, to="native/int4-g32", out=tmp_path / "out")
    assert len(made.recovered) == LINEARS - 1
    before, after = (open_checkpoint(path).source for path in (folder, tmp_path / "out"))
    name = "model.layers.0.mlp.up_proj.weight"
    wanted, found = before.rows(name), after.rows(name)
    off = np.abs(found - wanted).max(axis=1) > 1e-3
    assert off[3]
    assert off.sum() == 1


def _mixed(source: Path, others: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, with a row of one matrix taken from others."""
    opened = open_checkpoint(source).source
    tensors = {
        name: opened.rows(name).reshape(info.shape).astype(ml_dtypes.bfloat16) for name, info in opened.tensors.items()
    }
    tensors["model.layers.0.mlp.up_proj.weight"][3] = others["model.layers.0.mlp.up_proj.weight"][3]
    return tensors


def test_an_ordinary_checkpoint_recovers_nothing(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "out.gguf")
    assert made.recovered == ()
    assert made.manifest is not None
    assert json.loads(made.manifest.recipe)["recovered_tensors"] == 0
