"""`merge`: the sum of original and adapter, quantized in one pass, and what that lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.adapter import read_adapter
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.tune.merged import merged
from tests.adapters import make_adapter
from tests.cli.command import Command
from tests.tiny import CONFIG, make_folder, weights


def test_the_sum_tensor_by_tensor(tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    adapter = read_adapter(make_adapter(tmp_path / "a", tiny, targets=("up_proj",)), checkpoint)
    source = merged(checkpoint, adapter).source
    name, other = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
    low = adapter.layers["blk.1.ffn_up"]
    wanted = checkpoint.source.rows(name) + np.float32(low.scale) * (low.up @ low.down)
    np.testing.assert_allclose(source.rows(name), wanted, rtol=1e-5, atol=1e-6)
    assert np.array_equal(source.decode(source.packed(name, 3, 9)), source.rows(name)[3:9])
    assert source.tensors[name].layout == "f32"
    assert source.tensors[other] == checkpoint.source.tensors[other]
    assert np.array_equal(source.rows(other), checkpoint.source.rows(other))


@pytest.mark.parametrize("to", ["q8_0", "native/int8-g64", "bf16"])
def test_what_is_written_is_near_original_and_adapter(tiny: Path, tmp_path: Path, to: str) -> None:
    adapter = make_adapter(tmp_path / "a", tiny)
    out = tmp_path / ("out.gguf" if to == "q8_0" else "out")
    made = bitsmith.merge(tiny, adapter, to=to, out=out, max_windows=2)
    assert made.loss is not None
    assert made.loss.divergence is not None
    assert made.loss.divergence.kld.value < 1e-3
    away = bitsmith.evaluate(out, against=tiny, context=128, max_windows=2)
    assert away.divergence is not None
    assert away.divergence.kld.value > 10 * made.loss.divergence.kld.value


def test_with_a_calibration(tiny: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a", tiny)
    words = {"calibration": "default", "calibration_tokens": 1024, "calibration_context": 64, "max_windows": 4}
    losses = []
    for method in ("nearest", "gptq"):
        made = bitsmith.merge(tiny, adapter, to="native/int3-g64", out=tmp_path / method, method=method, **words)
        assert made.loss is not None
        assert made.loss.divergence is not None
        losses.append(made.loss.divergence.kld.value)
    assert losses[1] < losses[0]


def test_from_the_command_line(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    adapter, out = make_adapter(tmp_path / "a", tiny), tmp_path / "out.gguf"
    words = ("merge", tiny, adapter, "--to", "q8_0", "--out", out, "--max-windows", 2)
    result = bitsmith_command(*words)
    assert result.code == 0, result
    assert "out against tiny with a" in result.out
    assert "bitsmith merge tiny a --to gguf/q8_0" in bitsmith_command("inspect", out, "--recipe").out
    made = json.loads(bitsmith_command(*words, "--force", "--no-measure", "--json").out)
    assert made["loss"] is None
    assert "would round the sum" in bitsmith_command.fails(1, "merge", out, adapter, "--to", "q4_0")


def test_what_is_refused(tiny: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a", tiny)
    folder = tmp_path / "nf4"
    bitsmith.quantize(tiny, to="native/nf4", out=folder)
    with pytest.raises(UnsupportedError, match="give the 16-bit original"):
        bitsmith.merge(folder, adapter, to="q4_0", out=tmp_path / "x.gguf")
    wide = make_folder(tmp_path / "wide", tensors=weights({**CONFIG, "intermediate_size": 192}), intermediate_size=192)
    with pytest.raises(FileError, match="give the adapter's own base"):
        bitsmith.merge(wide, adapter, to="q4_0", out=tmp_path / "x.gguf")


def test_commands_of_one_output_refuse_several(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a", tiny)
    twice = ("--to", "q8_0", "--to", "q4_0", "--out", tmp_path / "out.gguf")
    assert "merge makes one output" in bitsmith_command.fails(2, "merge", tiny, adapter, *twice)
    assert "tune qat makes one output" in bitsmith_command.fails(2, "tune", "qat", tiny, *twice)
    assert not (tmp_path / "out.gguf").exists()
