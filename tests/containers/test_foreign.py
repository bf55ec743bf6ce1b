"""Folders that other tools quantized in ways that bitsmith does not read: named and refused, also with --requantize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bitsmith.errors import UnsupportedError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.pipeline.quantization import quantize
from bitsmith.planner.report import plan
from bitsmith.runtime.load import load_language_model
from tests.cli.command import Command
from tests.tiny import CONFIG, make_folder, weights

U8, I8, F32 = np.uint8, np.int8, np.float32
MODULE = "model.layers.0.mlp.down_proj"


def _z(shape: tuple[int, ...], dtype: Any = F32) -> np.ndarray:
    return np.ones(shape, dtype)


# the entries in place of one module's weight, fields of config.json, files beside it, and the method's name
FOLDERS: dict[str, tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any], str]] = {
    "bitsandbytes-8bit": (
        {".weight": _z((64, 128), I8), ".CB": _z((64,)), ".weight_format": _z((), U8)},  # without its SCB
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {},
        "bitsandbytes in a variant that is not known",
    ),
    "bitsandbytes-4bit": (
        {
            ".weight": _z((4096, 1), U8),
            ".weight.absmax": _z((128,)),
            ".weight.quant_map": _z((16,)),
            ".weight.quant_state": _z((80,), U8),  # as the first versions wrote it
        },
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {},
        "bitsandbytes, 4 bit, in a variant that is not known",
    ),
    "fp8-without-scales": (
        {".weight": _z((64, 128), ml_dtypes.float8_e4m3fn)},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        {},
        "FP8",
    ),
    "quanto": (
        {".weight._data": _z((64, 128), I8), ".weight._scale": _z((64, 1)), ".input_scale": _z(())},
        {},
        {"quanto_qmap.json": {}},
        "quanto",
    ),
    "auto-round": (
        {".qweight": _z((16, 64), np.int32), ".qzeros": _z((1, 8), np.int32), ".scales": _z((1, 64), np.float16)},
        {"quantization_config": {"quant_method": "auto-round", "bits": 4, "group_size": 128}},
        {},
        "AutoRound",
    ),
    "hqq": (
        {".W_q": _z((32, 128), U8), ".scale": _z((64, 1)), ".zero": _z((64, 1))},
        {"quantization_config": {"quant_method": "hqq"}},
        {},
        "HQQ",
    ),
    "eetq": (
        {".weight": _z((128, 64), I8), ".weight_scales": _z((64,), np.float16)},
        {"quantization_config": {"quant_method": "eetq"}},
        {},
        "EETQ",
    ),
    "bitnet": (
        {".weight": _z((16, 128), U8), ".weight_scale": _z((1,))},
        {"quantization_config": {"quant_method": "bitnet"}},
        {},
        "BitNet",
    ),
    "mxfp4": (
        {"_blocks": _z((64, 4, 16), U8), "_scales": _z((64, 4), U8)},
        {"quantization_config": {"quant_method": "mxfp4"}},
        {},
        "MXFP4",
    ),
    "torchao": (
        {".weight": _z((64, 128), I8), ".weight_scale": _z((64, 1))},
        {"quantization_config": {"quant_method": "torchao"}},
        {},
        "torchao",
    ),
    "unheard-of": (
        {".weight": _z((64, 128), I8), ".weight_scale": _z((64, 1))},
        {"quantization_config": {"quant_method": "frobnicate"}},
        {},
        "'frobnicate'",
    ),
    "unnamed": ({".weight": _z((64, 128), I8), ".weight_scale": _z((64, 1))}, {}, {}, "an unknown method"),
}


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    parts, fields, files, name = FOLDERS[request.param]
    tensors = {key: value for key, value in weights(CONFIG).items() if key != f"{MODULE}.weight"}
    made = make_folder(
        tmp_path / "m", tensors=tensors | {MODULE + end: value for end, value in parts.items()}, **fields
    )
    for file, content in files.items():
        (made / file).write_text(json.dumps(content))
    return made, name


@pytest.mark.parametrize("to", ["q8_0", "native/int4", "native/bf16", "gptq/int4"])
@pytest.mark.parametrize("requantize", [False, True])
def test_quantize_refuses_by_name(folder: tuple[Path, str], to: str, requantize: bool, tmp_path: Path) -> None:
    path, name = folder
    with pytest.raises(UnsupportedError, match=rf"quantized with {name}.*{MODULE}.*original model"):
        quantize(path, to=to, out=tmp_path / "out", requantize=requantize)
    assert not (tmp_path / "out").exists()


def test_running_and_evaluating_refuse_by_name(folder: tuple[Path, str]) -> None:
    path, name = folder
    checkpoint = open_checkpoint(path)
    with pytest.raises(UnsupportedError, match=f"quantized with {name}"):
        load_language_model(checkpoint, kernel="torch")


def test_plan_counts_the_files_and_says_what_they_are(folder: tuple[Path, str]) -> None:
    path, _ = folder
    report = plan(path, memory="8GB")
    said = [warning for warning in report.warnings if "quantized with" in warning]
    assert len(said) == 1
    assert [row.target for row in report.rows] == [None]


def test_inspect_lists_the_tensors_and_says_what_they_are(folder: tuple[Path, str], bitsmith_command: Command) -> None:
    path, _ = folder
    done = bitsmith_command("inspect", str(path))
    assert MODULE in done.out
    assert "quantized with" in done.out + done.err


def test_a_configuration_alone_does_not_make_a_model_foreign(tmp_path: Path) -> None:
    """Dequantized weights whose config.json still names the method are floats."""
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    made = make_folder(tmp_path / "m", quantization_config=config)
    assert open_checkpoint(made).foreign is None
    quantize(made, to="q8_0", out=tmp_path / "m.gguf")


def test_buffers_are_no_codes(tmp_path: Path) -> None:
    tensors = weights(CONFIG) | {"model.layers.0.attn.mask": np.zeros((1, 1, 8, 8), np.bool_)}
    assert open_checkpoint(make_folder(tmp_path / "m", tensors=tensors)).foreign is None
