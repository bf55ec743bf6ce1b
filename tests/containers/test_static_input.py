"""Weights with a stored scale of their input: parts, slabs, errors; and what a configuration says of inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bitsmith.containers.compressed_codecs import FloatCodec, IntegerCodec, PackedCodec
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.containers.static_input import INPUT_SCALE, StaticInput
from bitsmith.errors import BitsmithError, FileError, TensorError, UnsupportedError, UsageError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.fp8 import fp8
from bitsmith.quant.formats.tensorwide import TensorWide
from bitsmith.quant.input_rounding import EPSILON, InputRounding
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from tests.containers.foreign import MODULE, check_reads, write_folder

OUT, IN = 64, 96
WEIGHT = np.random.default_rng(2).standard_normal((OUT, IN)).astype(np.float32)
TENSOR_WIDE = TensorWide("fp8-bf16-tensor", fp8("bf16")).with_extent(float(WEIGHT.min()), float(WEIGHT.max()))
INT8, FP8 = InputRounding("int8", "tensor"), InputRounding("fp8", "tensor")
CODECS = [
    StaticInput(IntegerCodec(Affine(8, 0, False, "bf16")), INT8, "bf16"),
    StaticInput(FloatCodec(fp8("bf16")), FP8, "bf16"),
    StaticInput(FloatCodec(TENSOR_WIDE), FP8, "f32", ()),
    StaticInput(PackedCodec(Affine(4, 32, True)), INT8, "f16"),
]
NAME = f"{MODULE}.weight"


def tensor_of(codec: StaticInput) -> QuantTensor:
    codes, params = nearest(WEIGHT, codec.format)
    return QuantTensor(codec.format, codes, params)


def args(**changes: Any) -> dict[str, Any]:
    """`input_activations`: int8, per token, dynamic, with changes."""
    return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True, **changes}


STATIC = {"strategy": "tensor", "dynamic": False}


def folder_of(
    path: Path, inputs: dict[str, Any] | None, codec: StaticInput = CODECS[0], *, without: str = "", **parts: np.ndarray
) -> Path:
    """One module of `codec`'s parts, changed."""
    kind = "float" if isinstance(codec.weights, FloatCodec) else "int"
    scope = "tensor" if isinstance(codec.format, TensorWide) else "channel"
    weights = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": scope}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    said = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    made = {**codec.with_input_absmax(3.0).encode(tensor_of(codec)), **parts}
    return write_folder(path, {name: part for name, part in made.items() if name != without}, said)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_what_is_encoded_comes_back(codec: StaticInput) -> None:
    told, tensor = codec.with_input_absmax(3.0), tensor_of(codec)
    parts = told.encode(tensor)
    assert {part: (x.shape, x.dtype) for part, x in parts.items()} == codec.layout(WEIGHT.shape)
    assert codec.axes.keys() == parts.keys()
    assert np.array_equal(codec.decode(parts, IN).codes, tensor.codes)
    assert codec.read(parts) == told.input_rounding
    exact = 3.0 / (127.5 if codec.input_rounding.type == "int8" else 448)
    assert told.input_rounding.scale == pytest.approx(exact, rel=2**-8)
    slabs = [codec.window(parts, start, start + 32) for start in (0, 32)]
    joined = codec.join(slabs)
    assert all(joined[part].tobytes() == x.tobytes() for part, x in parts.items())
    assert np.array_equal(codec.decode(codec.window(parts, 5, 41), IN).codes, tensor.codes[5:41])


def test_scales_that_cannot_be_stored() -> None:
    codec = CODECS[3]
    assert (
        codec.with_input_absmax(0.0).input_rounding.scale
        == codec.with_input_absmax(1e-9).input_rounding.scale
        == EPSILON
    )
    with pytest.raises(TensorError, match=r"the input reaches 1e\+08, whose scale does not fit f16"):
        codec.with_input_absmax(1e8)
    with pytest.raises(UsageError, match=r"compressed/int8-channel-static stores a scale.*codec\.with_input_absmax"):
        CODECS[0].encode(tensor_of(CODECS[0]))


@pytest.mark.parametrize("codec", CODECS[:3], ids=lambda codec: codec.name)
def test_static_files(tmp_path: Path, codec: StaticInput) -> None:
    path = folder_of(
        tmp_path / "m", args(type="float" if codec.input_rounding.type == "fp8" else "int", **STATIC), codec
    )
    source = check_reads(path, tensor_of(codec).values(), codec.name)
    assert source.input_rounding(NAME) == codec.with_input_absmax(3.0).input_rounding


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (None, None),
        (args(), InputRounding("int8", "token")),
        (args(type="float"), InputRounding("fp8", "token")),
        (args(strategy="tensor"), InputRounding("int8", "tensor")),
        (args(strategy=None, group_size=None), InputRounding("int8", "tensor")),
        ({"dynamic": True}, InputRounding("int8", "tensor")),
    ],
)
def test_dynamic_files(tmp_path: Path, inputs: dict[str, Any] | None, expected: InputRounding | None) -> None:
    """An input_scale that lies beside them is not looked at, as in vLLM."""
    source = check_reads(folder_of(tmp_path / "m", inputs), tensor_of(CODECS[0]).values(), "compressed/int8-channel")
    assert source.input_rounding(NAME) == expected


def test_groups_name_modules_and_patterns(tmp_path: Path) -> None:
    for number, target in enumerate([MODULE, r"re:.*down_proj$"]):
        path = folder_of(tmp_path / str(number), args())
        config = (path / "config.json").read_text()
        plain = '{"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}'
        config = config.replace('"Linear"', f'"{target}"').replace('"group_0"', f'"other": {plain}, "group_0"')
        (path / "config.json").write_text(config)
        assert SafetensorsSource(path).input_rounding(NAME) == InputRounding("int8", "token")
    (path / "config.json").write_text(config.replace("down_proj", "up_proj"))
    assert SafetensorsSource(path).input_rounding(NAME) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"symmetric": False},
        {"num_bits": 4},
        {"strategy": "group", "group_size": 32},
        {"strategy": None, "group_size": 128},
        {"strategy": "block", "block_structure": [128, 128]},
        {"dynamic": "local", "strategy": "tensor_group"},
        {"dynamic": False},
        {"dynamic": ["x"]},
        {"type": "nf"},
        {**STATIC, "symmetric": False},
    ],
)
def test_what_the_decoder_cannot_run_says_so_when_asked(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = check_reads(
        folder_of(tmp_path / "m", args(**changes)), tensor_of(CODECS[0]).values(), "compressed/int8-channel"
    )
    with pytest.raises(UnsupportedError, match=rf"{MODULE} rounds its inputs as .*, dynamic: .*requantize=True"):
        source.input_rounding(NAME)


def test_rounded_outputs_are_not_run(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "m", args())
    config = (path / "config.json").read_text().replace('"input_activations"', '"output_activations"')
    (path / "config.json").write_text(config)
    with pytest.raises(UnsupportedError, match=f"{MODULE} rounds its outputs"):
        SafetensorsSource(path).input_rounding(NAME)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"without": INPUT_SCALE}, f"entry {MODULE}.input_scale is missing"),
        ({INPUT_SCALE: np.ones((OUT, 1), np.float32)}, r"input_scale is \[64, 1\]; a tensor has one scale"),
        ({INPUT_SCALE: np.ones(1, np.int8)}, "input_scale is I8; expected F16, BF16 or F32"),
        ({INPUT_SCALE: np.zeros(1, np.float32)}, rf"{NAME}: its input_scale is 0.0; expected a number above zero"),
        ({INPUT_SCALE: np.full(1, np.nan, ml_dtypes.bfloat16)}, "its input_scale is nan"),
    ],
)
def test_damage_is_named(tmp_path: Path, words: dict[str, Any], message: str) -> None:
    path = folder_of(tmp_path / "m", args(**STATIC), **words)
    with pytest.raises(BitsmithError, match=message):
        SafetensorsSource(path).input_rounding(NAME)


def test_a_configuration_of_another_shape(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "m", args())
    config = (path / "config.json").read_text().replace('"input_activations": {', '"input_activations": 8, "x": {')
    (path / "config.json").write_text(config)
    with pytest.raises(FileError, match="input_activations in quantization_config is not an object"):
        SafetensorsSource(path)
