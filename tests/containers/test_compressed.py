"""compressed-tensors' layouts: round trips, slabs, files of other tools. tests/oracle asks the package itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bitsmith.containers.compressed_codecs import FloatCodec, IntegerCodec, PackedCodec
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import BitsmithError, TensorError, UnsupportedError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.fp8 import fp8
from bitsmith.quant.formats.tensorwide import TensorWide
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from tests.containers.foreign import MODULE, check_reads, write_folder
from tests.containers.published import gptq_words, values
from tests.containers.test_gptq import GROUP, IN, OUT, drawn

WEIGHT = np.random.default_rng(2).standard_normal((OUT, IN)).astype(np.float32)
TENSOR_WIDE = TensorWide("fp8-bf16-tensor", fp8("bf16")).with_extent(float(WEIGHT.min()), float(WEIGHT.max()))
CODECS = [
    *(PackedCodec(Affine(bits, group, asym)) for bits in (2, 3, 4, 8) for group in (0, 32) for asym in (False, True)),
    IntegerCodec(Affine(8, 0, False, "bf16")),
    IntegerCodec(Affine(4, 32, True)),
    FloatCodec(fp8("bf16")),
    FloatCodec(TENSOR_WIDE),
]


def config(**weights: Any) -> dict[str, Any]:
    """`quantization_config` of one group."""
    args = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": GROUP, "strategy": "group", **weights}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}},
    }


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_what_is_encoded_comes_back(codec: PackedCodec | IntegerCodec | FloatCodec) -> None:
    codes, params = nearest(WEIGHT, codec.format)
    tensor = QuantTensor(codec.format, codes, params)
    parts = codec.encode(tensor)
    assert {part: (x.shape, x.dtype) for part, x in parts.items()} == codec.layout(WEIGHT.shape)
    back = codec.decode(parts, IN)
    assert back.format == codec.format
    assert np.array_equal(back.values(), tensor.values())
    if isinstance(codec, IntegerCodec):
        return
    slabs = [
        codec.encode(QuantTensor(codec.format, codes[a:b], {name: p[a:b] for name, p in params.items()}))
        for a, b in ((0, 32), (32, OUT))
    ]
    joined = codec.join(slabs)
    assert all(np.array_equal(joined[part].view(np.uint8), x.view(np.uint8)) for part, x in parts.items())
    assert np.array_equal(codec.decode(codec.window(parts, 5, 41), IN).codes, codes[5:41])


def packed_parts(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, bits: int) -> dict[str, np.ndarray]:
    """By the published formula: words along the rows, zero points along the outputs."""
    parts = {
        "weight_packed": np.ascontiguousarray(gptq_words(np.ascontiguousarray(codes.T), bits).T),
        "weight_scale": scale,
        "weight_shape": np.array(codes.shape),
    }
    return parts if zero is None else {**parts, "weight_zero_point": gptq_words(zero, bits)}


@pytest.mark.parametrize(
    ("bits", "weights", "layout"),
    [
        (4, {}, "compressed/pack-int4-g32-f16"),
        (8, {"num_bits": 8, "strategy": "channel", "group_size": None}, "compressed/pack-int8-channel-f16"),
        (4, {"symmetric": False}, "compressed/pack-int4-g32-asym-f16"),
        (4, {"symmetric": False, "actorder": "weight"}, "compressed/pack-int4-g32-asym-f16-g_idx"),
    ],
)
def test_packed_files_of_other_tools(tmp_path: Path, bits: int, weights: dict[str, Any], layout: str) -> None:
    index = np.arange(IN) // (IN if "channel" in layout else GROUP)
    codes, scale, zero = drawn(bits, index[-1] + 1, asymmetric="asym" in layout)
    parts = packed_parts(codes, scale, zero if "asym" in layout else None, bits)
    if "actorder" in weights:
        index = np.random.default_rng(5).permutation(index)
        parts["weight_g_idx"] = index.astype(np.int32)
    folder = write_folder(tmp_path / "m", parts, config(**weights))
    check_reads(folder, values(codes, scale, zero, index), layout)


def test_unpacked_files_of_other_tools(tmp_path: Path) -> None:
    codes, scale, zero = drawn(8, 1, asymmetric=False)
    index = np.zeros(IN, np.int64)
    signed, wide = (codes.astype(np.int16) - 128).astype(np.int8), scale.astype(np.float32)
    parts: dict[str, np.ndarray] = {"weight": signed, "weight_scale": wide}
    by_row = {"num_bits": 8, "strategy": "channel", "group_size": None}
    expected = values(codes, wide, zero, index)
    check_reads(write_folder(tmp_path / "a", parts, config(**by_row)), expected, "compressed/int8-channel-f32")
    static = {**parts, "input_scale": np.ones(1, np.float32), "weight_zero_point": np.zeros((OUT, 1), np.int8)}
    check_reads(write_folder(tmp_path / "b", static, config(**by_row)), expected, "compressed/int8-channel-f32")


@pytest.mark.parametrize("shape", [(OUT, 1), (1,), ()])
def test_fp8_files_of_other_tools(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weight = WEIGHT.astype(ml_dtypes.float8_e4m3fn)
    scale = np.array(np.random.default_rng(3).uniform(0.1, 1, shape), ml_dtypes.bfloat16)
    expected = weight.astype(np.float64) * np.broadcast_to(scale.astype(np.float64).reshape(-1, 1), (OUT, 1))
    strategy = "channel" if len(shape) == 2 else "tensor"
    layout = f"compressed/fp8-{strategy}" + ("-0d" if shape == () else "")
    said = config(num_bits=8, type="float", strategy=strategy, group_size=None)
    check_reads(write_folder(tmp_path / "m", {"weight": weight, "weight_scale": scale}, said), expected, layout)


def test_groups_name_modules_classes_and_patterns(tmp_path: Path) -> None:
    codes, scale, zero = drawn(4, IN // GROUP, asymmetric=False)
    parts = packed_parts(codes, scale, None, 4)
    other = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
    for number, target in enumerate([MODULE, r"re:.*down_proj$"]):
        said = config()
        said["config_groups"] = {"a": other, "b": {**said["config_groups"]["group_0"], "targets": [target]}}
        folder = write_folder(tmp_path / str(number), parts, said)
        check_reads(folder, values(codes, scale, zero, np.arange(IN) // GROUP), "compressed/pack-int4-g32-f16")
    said["config_groups"] = {"b": {**said["config_groups"]["b"], "targets": ["re:.*up_proj"]}}
    with pytest.raises(BitsmithError, match=f"no group of quantization_config targets {MODULE}"):
        SafetensorsSource(write_folder(tmp_path / "none", parts, said))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bits": 6}, "num_bits 6"),
        ({"group_size": 64}, r"weight_packed is I32 .64, 16.; compressed/pack-int4-g64-f16 .* needs int32 .64, 32."),
        ({"strategy": "block"}, "integers by block are unknown"),
        ({"symmetric": False}, "weight_zero_point is missing"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    codes, scale, _ = drawn(4, IN // GROUP, asymmetric=False)
    with pytest.raises(BitsmithError, match=message):
        SafetensorsSource(write_folder(tmp_path / "m", packed_parts(codes, scale, None, 4), config(**changes)))


def test_damage_names_the_tensor(tmp_path: Path) -> None:
    codes, scale, _ = drawn(4, IN // GROUP, asymmetric=False)
    parts = packed_parts(codes, scale, None, 4)
    wrong = {**parts, "weight_shape": np.array([OUT, IN - 1])}
    with pytest.raises(TensorError, match=rf"{MODULE}.weight: weight_shape says .64, 127., the other parts have 128"):
        SafetensorsSource(write_folder(tmp_path / "a", wrong, config())).rows(f"{MODULE}.weight")
    nan = {"weight": np.full((OUT, IN), 0x7F, np.uint8).view(ml_dtypes.float8_e4m3fn), "weight_scale": scale[:, :1]}
    said = config(num_bits=8, type="float", strategy="channel", group_size=None)
    with pytest.raises(TensorError, match=rf"{MODULE}.weight: fp8-f16 has no value for the pattern 0x7f"):
        SafetensorsSource(write_folder(tmp_path / "b", nan, said)).rows(f"{MODULE}.weight")


def test_impossible_shapes() -> None:
    with pytest.raises(UnsupportedError, match="hold matrices"):
        FloatCodec(fp8()).layout((2, 3, 4))
