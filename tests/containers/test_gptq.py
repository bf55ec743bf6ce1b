"""GPTQ's layout, held against its published formulas; files of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bitsmith.containers.gptq import GptqCodec, gptq_codec
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import BitsmithError, FileError, TensorError, UnsupportedError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from tests.containers.foreign import MODULE, check_reads, write_folder
from tests.containers.published import gptq_parts, gptq_words, values

OUT, IN, GROUP = 64, 128, 32
CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}


def drawn(bits: int, groups: int, *, asymmetric: bool, lowest: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random codes [out, in], scales and zero points [out, groups]."""
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (OUT, IN)).astype(np.uint8)
    scale = rng.uniform(1e-3, 1e-2, (OUT, groups)).astype(np.float16)
    zero = rng.integers(lowest, 1 << bits, (OUT, groups)) if asymmetric else np.full((OUT, groups), 1 << (bits - 1))
    return codes, scale, zero.astype(np.uint8)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("group", [0, GROUP])
def test_bytes_follow_the_published_layout(bits: int, asymmetric: bool, group: int) -> None:
    index = np.arange(IN) // (group or IN)
    codes, scale, zero = drawn(bits, index[-1] + 1, asymmetric=asymmetric)
    format = Affine(bits, group, asymmetric, "f16")
    codec = GptqCodec(format, int(not asymmetric))
    params = {"scale": scale, "zero": zero} if asymmetric else {"scale": scale}
    parts = codec.encode(QuantTensor(format, codes, params))
    expected = gptq_parts(codes, scale, zero, index, bits, shift=int(not asymmetric))
    assert parts.keys() == expected.keys()
    for part, array in expected.items():
        assert np.array_equal(parts[part], array), part
        assert (parts[part].shape, parts[part].dtype) == codec.layout((OUT, IN))[part]
    back = codec.decode(parts, IN)
    assert back.format == format
    assert np.allclose(back.values(), values(codes, scale, zero, index), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_slabs_join_and_windows_cut(bits: int) -> None:
    format = Affine(bits, GROUP, True, "f16")
    codec = GptqCodec(format, 0)
    w = np.random.default_rng(1).standard_normal((96, IN)).astype(np.float32)
    codes, params = nearest(w, format)

    def slab(start: int, stop: int) -> dict[str, np.ndarray]:
        part = QuantTensor(format, codes[start:stop], {name: p[start:stop] for name, p in params.items()})
        return codec.encode(part)

    whole = codec.join([slab(0, 96)])
    joined = codec.join([slab(0, 32), slab(32, 64), slab(64, 96)])
    assert all(np.array_equal(whole[part], joined[part]) for part in whole)
    window = codec.decode(codec.window(whole, 5, 50), IN)
    assert np.array_equal(window.codes, codes[5:50])
    assert np.array_equal(window.params["zero"], params["zero"][5:50])


@pytest.mark.parametrize(
    ("format", "name"),
    [
        (Affine(4, 32, False, "f16"), "gptq/int4-g32"),
        (Affine(8, 0, False, "f16"), "gptq/int8-channel"),
        (Affine(3, 32, False, "f16"), "gptq/int3-g32-v2"),
        (Affine(2, 32, False, "f16"), "gptq/int2-g32-v2"),
        (Affine(4, 32, True, "f16"), "gptq/int4-g32-asym-v2"),
        (Affine(4, 32, False, "bf16"), None),
    ],
)
def test_v1_where_its_readers_take_it(format: Affine, name: str | None) -> None:
    codec = gptq_codec(format)
    assert (codec and codec.name) == name
    assert codec is None or codec.zero_shift == int("v2" not in codec.name)


def test_the_version_decides_what_is_stored() -> None:
    """Symmetric codes of four bits have the zero point 8: v1, the default, stores 7, v2 stores 8."""
    format = Affine(4, GROUP, False, "f16")
    codes, scale, _ = drawn(4, IN // GROUP, asymmetric=False)
    tensor = QuantTensor(format, codes, {"scale": scale})
    for codec, stored in ((GptqCodec(format), 0x77777777), (GptqCodec(format, 0), 0x88888888)):
        assert (codec.encode(tensor)["qzeros"].view(np.uint32) == stored).all()


def test_a_zero_point_of_256_is_refused() -> None:
    format = Affine(8, GROUP, True, "f16")
    codes, scale, _ = drawn(8, IN // GROUP, asymmetric=True)
    zero = np.full(scale.shape, 255, np.uint8)
    parts = GptqCodec(format, 0).encode(QuantTensor(format, codes, {"scale": scale, "zero": zero}))
    assert (GptqCodec(format, 0).decode(parts, IN).params["zero"] == 255).all()
    with pytest.raises(TensorError, match="zero point of 256"):
        GptqCodec(format, 1).decode(parts, IN)


def test_v1_cannot_store_a_zero_point_of_zero() -> None:
    codes, scale, zero = drawn(4, IN // GROUP, asymmetric=True)
    assert zero.min() == 0
    format = Affine(4, GROUP, True, "f16")
    with pytest.raises(TensorError, match="zero point of 0"):
        GptqCodec(format, 1).encode(QuantTensor(format, codes, {"scale": scale, "zero": zero}))


@pytest.mark.parametrize(
    ("bits", "changes", "layout"),
    [
        (4, {}, "gptq/int4-g32"),
        (4, {"checkpoint_format": "gptq"}, "gptq/int4-g32"),
        (8, {"bits": 8, "checkpoint_format": "gptq_v2"}, "gptq/int8-g32-v2"),
        (3, {"bits": 3, "sym": False}, "gptq/int3-g32-asym"),
        (2, {"bits": 2, "sym": False, "checkpoint_format": "gptq_v2"}, "gptq/int2-g32-asym-v2"),
        (4, {"bits": 8, "dynamic": {"-:x": {}, "+:.*down": {"bits": 4}}}, "gptq/int4-g32"),
        (4, {"group_size": -1}, "gptq/int4-channel"),
        (4, {"desc_act": True}, "gptq/int4-g32"),
        (4, {"desc_act": True, "sym": False}, "gptq/int4-g32-asym"),
    ],
)
def test_files_of_other_tools(tmp_path: Path, bits: int, changes: dict[str, Any], layout: str) -> None:
    config = {**CONFIG, **changes}
    index = np.arange(IN) // (config["group_size"] if config["group_size"] > 0 else IN)
    if config["desc_act"]:
        index = np.random.default_rng(5).permutation(index)
    shift = int(config.get("checkpoint_format") != "gptq_v2")
    codes, scale, zero = drawn(bits, index.max() + 1, asymmetric=not config["sym"], lowest=shift)
    parts = gptq_parts(codes, scale, zero, index, bits, shift=shift)
    folder = write_folder(tmp_path / "m", parts, config)
    check_reads(folder, values(codes, scale, zero, index), layout)


def test_variants_of_the_parts(tmp_path: Path) -> None:
    """No g_idx, as some tools leave it out; bfloat16 scales; the configuration in a file of its own."""
    index = np.arange(IN) // GROUP
    codes, scale, zero = drawn(4, IN // GROUP, asymmetric=False)
    parts = gptq_parts(codes, scale, zero, index, 4, shift=1)
    del parts["g_idx"]
    expected = values(codes, scale, zero, index)
    check_reads(write_folder(tmp_path / "a", parts, CONFIG), expected, "gptq/int4-g32-noindex")
    wide = scale.astype(ml_dtypes.bfloat16)
    parts = gptq_parts(codes, wide, zero, index, 4, shift=1)
    check_reads(write_folder(tmp_path / "b", parts, CONFIG), values(codes, wide, zero, index), "gptq/int4-g32-bf16")
    folder = write_folder(tmp_path / "c", gptq_parts(codes, scale, zero, index, 4, shift=1), CONFIG)
    (folder / "config.json").rename(folder / "whole.json")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 32, "sym": true, "desc_act": false}')
    check_reads(folder, expected, "gptq/int4-g32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 5}, "bits 5; known: 2, 3, 4, 8"),
        ({"bits": None}, "bits None"),
        ({"group_size": 0}, "group_size 0"),
        ({"group_size": 48}, "shape .64, 128. is impossible"),
        ({"group_size": 64}, r"down_proj.qzeros is I32 .4, 8.; gptq/int4-g64 .* needs int32 .2, 8."),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({"dynamic": {"+:(": {"bits": 8}}}, "not a regular expression"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    codes, scale, zero = drawn(4, IN // GROUP, asymmetric=False)
    parts = gptq_parts(codes, scale, zero, np.arange(IN) // GROUP, 4, shift=1)
    folder = write_folder(tmp_path / "m", parts, {**CONFIG, **changes})
    with pytest.raises(BitsmithError, match=message):
        SafetensorsSource(folder)


def test_entries_that_do_not_fit(tmp_path: Path) -> None:
    codes, scale, zero = drawn(4, IN // GROUP, asymmetric=False)
    parts = gptq_parts(codes, scale, zero, np.arange(IN) // GROUP, 4, shift=1)
    missing = {part: x for part, x in parts.items() if part != "qzeros"}
    with pytest.raises(FileError, match=rf"{MODULE}.weight is gptq/int4-g32 .* entry {MODULE}.qzeros is missing"):
        SafetensorsSource(write_folder(tmp_path / "a", missing, CONFIG))
    beyond = {**parts, "g_idx": np.full(IN, 4, np.int32)}
    with pytest.raises(TensorError, match=rf"{MODULE}.weight: g_idx names group 4, but there are 4"):
        SafetensorsSource(write_folder(tmp_path / "b", beyond, CONFIG)).rows(f"{MODULE}.weight")
    before = {**parts, "g_idx": np.full(IN, -1, np.int32)}
    with pytest.raises(TensorError, match=rf"{MODULE}.weight: g_idx names group -1, but there are 4"):
        SafetensorsSource(write_folder(tmp_path / "e", before, CONFIG)).rows(f"{MODULE}.weight")
    uneven = {**parts, "qzeros": np.ascontiguousarray(gptq_words(zero - 2, 4).T)}
    with pytest.raises(TensorError, match=rf'{MODULE}.weight: .*"sym": true.*8, but qzeros holds 7'):
        SafetensorsSource(write_folder(tmp_path / "c", uneven, CONFIG)).rows(f"{MODULE}.weight")
    twice = {**parts, "weight": np.zeros((OUT, IN), np.float16)}
    with pytest.raises(FileError, match="is there twice"):
        SafetensorsSource(write_folder(tmp_path / "d", twice, CONFIG))


def test_without_config_json_entries_stay_as_they_are(tmp_path: Path) -> None:
    codes, scale, zero = drawn(4, IN // GROUP, asymmetric=False)
    parts = gptq_parts(codes, scale, zero, np.arange(IN) // GROUP, 4, shift=1)
    source = SafetensorsSource(write_folder(tmp_path / "m", parts, None))
    assert source.tensors[f"{MODULE}.qweight"].layout == "i32"
    (tmp_path / "m" / "config.json").write_text("{}")
    with pytest.raises(FileError, match="has no quantization_config, though"):
        SafetensorsSource(tmp_path / "m")


def test_impossible_shapes() -> None:
    with pytest.raises(UnsupportedError, match="matrices, not 3 dimensions"):
        GptqCodec(Affine(4, 32, False, "f16")).layout((2, 64, 64))
    with pytest.raises(UnsupportedError, match="divide by 8; this is"):
        GptqCodec(Affine(4, 32, False, "f16")).layout((12, 64))
    with pytest.raises(UnsupportedError, match="divide by 32"):
        GptqCodec(Affine(3, 32, False, "f16")).layout((16, 64))
