"""Tensors that lose far more than their type usually does are warned of by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitsmith.errors import TensorError
from bitsmith.pipeline.quantization import quantize
from tests.cli.command import Command
from tests.tiny import CONFIG, make_folder, weights

NAME = "model.layers.0.mlp.up_proj.weight"


def _folder(folder: Path, factor: float) -> Path:
    tensors = {name: values.astype(np.float32) for name, values in weights(CONFIG).items()}
    tensors[NAME] *= np.float32(factor)
    return make_folder(folder, tensors=tensors)


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("q4_0", "blk.0.ffn_up.weight"),
        ("q8_0", "blk.0.ffn_up.weight"),
        ("f16", "blk.0.ffn_up.weight"),
        ("gptq/int4", NAME),
        ("native/int4-g64-f16", NAME),
    ],
)
def test_a_matrix_that_becomes_zeros_is_warned_of_by_name(tmp_path: Path, to: str, name: str) -> None:
    result = quantize(
        _folder(tmp_path / "m", 1e-8), to=to, out=tmp_path / "out", group_size=32 if "gptq" in to else None
    )
    assert result.losses == tuple(warning for warning in result.warnings if name in warning)
    assert len(result.losses) == 1
    assert f"{name} becomes all zeros" in result.losses[0]
    assert result.to_dict()["warnings"] == list(result.warnings)


def test_a_matrix_that_loses_much_is_warned_of_by_name(tmp_path: Path) -> None:
    result = quantize(_folder(tmp_path / "m", 2e-6), to="f16", out=tmp_path / "m.gguf")
    assert len(result.losses) == 1
    assert "blk.0.ffn_up.weight loses" in result.losses[0]


@pytest.mark.parametrize("to", ["q2_k", "q3_k_m", "q4_0", "q4_k_m", "q8_0", "native/int2", "native/nf4", "native/fp8"])
def test_ordinary_losses_are_no_warning(tmp_path: Path, to: str) -> None:
    assert quantize(_folder(tmp_path / "m", 1.0), to=to, out=tmp_path / "out").losses == ()


def test_the_command_says_so(tmp_path: Path, bitsmith_command: Command) -> None:
    done = bitsmith_command("quantize", _folder(tmp_path / "m", 1e-8), "--to", "q4_0", "-o", tmp_path / "m.gguf")
    assert done.code == 0
    assert "blk.0.ffn_up.weight becomes all zeros" in " ".join(done.err.split())


def test_float64_beyond_float32_is_named(tmp_path: Path) -> None:
    tensors = {name: values.astype(np.float64) for name, values in weights(CONFIG).items()}
    tensors[NAME][3, 5] = 1e300
    with pytest.raises(TensorError, match=rf"{NAME}: inf at row 3, column 5"):
        quantize(make_folder(tmp_path / "m", tensors=tensors), to="q8_0", out=tmp_path / "m.gguf")
