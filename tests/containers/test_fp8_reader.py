"""FP8 folders of other tools: blocks, channels, tensors; whole and by rows; quantized as an original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.pipeline.quantization import quantize
from bitsmith.planner.report import plan
from bitsmith.runtime.weights import weight_reader
from tests.containers.foreign import check_reads, write_folder
from tests.tiny import CONFIG, make_folder, weights

ROWS, COLS = 200, 320
BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def _fp8(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)


def _scales(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.01, 0.1, shape).astype(dtype)


def _expanded(scale: np.ndarray, shape: tuple[int, int], block: tuple[int, int]) -> np.ndarray:
    wide = np.repeat(np.repeat(scale.astype(np.float32), block[0], 0), block[1], 1)
    return wide[: shape[0], : shape[1]]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(200, 320), (128, 256), (576, 100), (70, 64)])
def test_blocks(tmp_path: Path, shape: tuple[int, int], dtype: Any) -> None:
    """Also rows and columns that end within a block."""
    weight, scale = _fp8(shape), _scales((-(-shape[0] // 128), -(-shape[1] // 128)), dtype)
    folder = write_folder(tmp_path / "m", {"weight": weight, "weight_scale_inv": scale}, BLOCK)
    name = "fp8/block128x128" if dtype is np.float32 else "fp8/block128x128-bf16"
    check_reads(folder, weight.astype(np.float32) * _expanded(scale, shape, (128, 128)), name)


def test_blocks_of_another_size(tmp_path: Path) -> None:
    weight, scale = _fp8((100, 96)), _scales((4, 3))
    config = BLOCK | {"weight_block_size": [32, 32]}
    folder = write_folder(tmp_path / "m", {"weight": weight, "weight_scale_inv": scale}, config)
    check_reads(folder, weight.astype(np.float32) * _expanded(scale, (100, 96), (32, 32)), "fp8/block32x32")


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((), "fp8/tensor"), ((1,), "fp8/tensor-1d"), ((ROWS, 1), "fp8/channel"), ((ROWS,), "fp8/channel-1d")],
)
@pytest.mark.parametrize("method", ["fp8", "fbgemm_fp8", "modelopt"])
def test_tensors_and_channels(tmp_path: Path, shape: tuple[int, ...], layout: str, method: str) -> None:
    weight, scale = _fp8((ROWS, COLS)), _scales(shape)
    parts = {"weight": weight, "weight_scale": scale, "input_scale": np.ones((), np.float32)}
    folder = write_folder(tmp_path / "m", parts, {"quant_method": method})
    own = "modelopt/fp8-static-f32-0d" if method == "modelopt" and not shape else layout
    check_reads(folder, weight.astype(np.float32) * scale.reshape(-1, 1), own)


def test_blocks_of_compressed_tensors(tmp_path: Path) -> None:
    weight, scale = _fp8((200, 320)), _scales((2, 3))
    arguments = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}
    group = {"targets": ["Linear"], "weights": arguments, "input_activations": None}
    config = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}
    folder = write_folder(tmp_path / "m", {"weight": weight, "weight_scale": scale}, config)
    check_reads(folder, weight.astype(np.float32) * _expanded(scale, (200, 320), (128, 128)), "fp8/block128x128")


def test_scales_of_an_unknown_shape(tmp_path: Path) -> None:
    parts = {"weight": _fp8((200, 320)), "weight_scale_inv": _scales((3, 3))}
    with pytest.raises(UnsupportedError, match=r"weight_scale_inv has shape \[3, 3\] for a weight of \[200, 320\]"):
        SafetensorsSource(write_folder(tmp_path / "m", parts, BLOCK))


def test_scales_of_an_unknown_type(tmp_path: Path) -> None:
    parts = {"weight": _fp8((200, 320)), "weight_scale_inv": np.ones((2, 3), np.int32)}
    with pytest.raises(FileError, match="weight_scale_inv is I32"):
        SafetensorsSource(write_folder(tmp_path / "m", parts, BLOCK))


def test_a_model_is_quantized_as_its_decoded_weights_are(tmp_path: Path) -> None:
    """Without --requantize, with a warning, and the same bytes as from the decoded folder."""
    tensors: dict[str, np.ndarray] = {}
    plain: dict[str, np.ndarray] = {}
    for name, values in weights(CONFIG).items():
        plain[name] = tensors[name] = values
        if values.ndim > 1 and "layers" in name:
            scale = _scales(tuple(-(-size // 128) for size in values.shape))
            tensors[name] = (values.astype(np.float32) * 10).astype(ml_dtypes.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale
            wide = _expanded(scale, (values.shape[0], values.shape[1]), (128, 128))
            plain[name] = tensors[name].astype(np.float32) * wide
    folder = make_folder(tmp_path / "fp8", tensors=tensors, quantization_config=BLOCK)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.foreign is None
    weight_reader(checkpoint)
    report = plan(folder, devices=["rtx-4090"], formats=["q8_0"])
    assert [(row.weights.target, row.verdicts[0].kind) for row in report.rows] == [
        ("as it is", "fits"),
        ("q8_0", "fits"),
    ]
    result = quantize(folder, to="q8_0", out=tmp_path / "a.gguf")
    assert any("FP8 in the source" in warning for warning in result.warnings)
    expected = quantize(make_folder(tmp_path / "plain", tensors=plain), to="q8_0", out=tmp_path / "b.gguf")
    assert result.manifest is not None
    assert expected.manifest is not None
    assert [t.sha256 for t in result.manifest.tensors] == [t.sha256 for t in expected.manifest.tensors]
    quantize(folder, to="compressed/w8a16", out=tmp_path / "w8a16")
    written = json.loads((tmp_path / "w8a16" / "config.json").read_text())
    assert written["quantization_config"]["quant_method"] == "compressed-tensors"
