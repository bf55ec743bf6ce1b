"""The native container: codes, patterns and parameters, through files and back."""

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open

from bitsmith.containers.manifest import JSON_KEY, Manifest, from_json, placeholder
from bitsmith.containers.native import NativeCodec, metadata
from bitsmith.containers.native_files import NativeTensor, native_files
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import FileError, TensorError, UnsupportedError
from bitsmith.quant.formats import FORMATS, get_format
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor, TensorInfo

NAMES = ["int4-g32", "int3-channel-asym", "int2-g64", "nf4", "fp4-dq", "fp8", "q4_k", "q6_k"]


def quantized(
    name: str, shape: tuple[int, ...], seed: int = 0
) -> tuple[NativeTensor, dict[str, np.ndarray], np.ndarray]:
    """A tensor to be written, its bytes, and the values they mean."""
    format = get_format(name)
    w = np.random.default_rng(seed).standard_normal((int(np.prod(shape[:-1])), shape[-1])).astype(np.float32)
    codes, params = nearest(w, format)
    codec = NativeCodec(format)
    tensor = QuantTensor(format, codes, params)
    parts = codec.layout(shape)
    nbytes = sum(int(np.prod(s)) * d.itemsize for s, d in parts.values())
    info = TensorInfo(f"layers.{name}.weight", shape, f"bitsmith/{name}", nbytes)
    return NativeTensor(info, parts), codec.encode(tensor), tensor.values()


def plain(name: str, values: np.ndarray, layout: str) -> tuple[NativeTensor, dict[str, np.ndarray], np.ndarray]:
    info = TensorInfo(name, values.shape, layout, values.nbytes)
    return NativeTensor(info, {}), {"data": values}, values.astype(np.float32)


def write(folder: Path, made: list, max_shard_bytes: int | None = None) -> None:
    tensors = [tensor for tensor, _, _ in made]
    manifest = placeholder("1", "{}", [tensor.info.name for tensor in tensors])
    layouts, index = native_files(tensors, manifest, max_shard_bytes=max_shard_bytes)
    data = {tensor.info.name: parts for tensor, parts, _ in made}
    folder.mkdir(exist_ok=True)
    for layout in layouts:
        content = bytearray(layout.size)
        content[: len(layout.header)] = layout.header
        for region in layout.regions:
            raw = np.ascontiguousarray(data[region.tensor][region.part]).tobytes()
            assert len(raw) == region.nbytes
            content[region.offset : region.offset + region.nbytes] = raw
        (folder / layout.filename).write_bytes(content)
    for name, text in index.items():
        (folder / name).write_bytes(text)


def everything() -> list:
    made = [quantized(name, (6, 256), seed) for seed, name in enumerate(NAMES)]
    made.append(plain("norm.weight", np.linspace(0, 1, 7).astype(ml_dtypes.bfloat16), "bf16"))
    made.append(plain("embed.weight", np.arange(12, dtype=np.float16).reshape(3, 4), "f16"))
    return made


@pytest.mark.parametrize("max_shard_bytes", [None, 3000])
def test_files_come_back(tmp_path: Path, max_shard_bytes: int | None) -> None:
    made = everything()
    write(tmp_path / "m", made, max_shard_bytes)
    source = SafetensorsSource(tmp_path / "m")
    assert (len(source.files) > 1) == (max_shard_bytes is not None)
    assert list(source.tensors) == [tensor.info.name for tensor, _, _ in made]
    for tensor, parts, values in made:
        name = tensor.info.name
        assert source.tensors[name] == tensor.info
        rows = source.rows(name)
        assert np.array_equal(rows.view(np.uint32), np.atleast_2d(values).view(np.uint32))
        some = source.packed(name, 0, 1)
        for part, array in parts.items():
            first = np.atleast_2d(array)[:1]
            assert np.asarray(some.parts[part]).tobytes() == first.tobytes()
        if tensor.info.rows > 2:
            assert np.array_equal(source.rows(name, 1, 3), rows[1:3])
        assert source.rows(name, 1, 1).shape == (0, tensor.info.cols)


def test_the_safetensors_package_reads_it(tmp_path: Path) -> None:
    made = everything()
    write(tmp_path / "m", made)
    with safe_open(tmp_path / "m" / "model.safetensors", "np") as file:
        assert np.array_equal(file.get_tensor("layers.fp8.weight.codes"), made[5][1]["codes"])
        assert file.get_tensor("layers.q4_k.weight.codes").shape == (6, 128)
        formats = json.loads(file.metadata()["bitsmith.tensors"])
    assert formats == {f"layers.{name}.weight": name for name in NAMES}


def test_each_shard_has_the_records_of_its_tensors(tmp_path: Path) -> None:
    write(tmp_path / "m", everything(), 3000)
    source = SafetensorsSource(tmp_path / "m")
    found = [from_json(texts[JSON_KEY]).tensors for texts in source.file_metadata.values()]
    assert len(found) > 1
    assert [record.name for records in found for record in records] == list(source.tensors)


def test_offsets_do_not_depend_on_the_manifests_content() -> None:
    tensors = [tensor for tensor, _, _ in everything()]
    first = placeholder("1", "{}", [tensor.info.name for tensor in tensors])
    records = tuple(replace(record, sha256="f" * 64, error=0.123456) for record in first.tensors)
    [before], _ = native_files(tensors, first)
    [after], _ = native_files(tensors, Manifest("1", "{}", records))
    assert before.header != after.header
    assert (before.regions, before.size, len(before.header)) == (after.regions, after.size, len(after.header))
    assert native_files(tensors, first)[0] == [before]


def test_leading_dimensions_stay() -> None:
    """A stack of experts is one weight."""
    layout = NativeCodec(get_format("int4-g32-asym")).layout((8, 3, 64))
    assert {part: shape for part, (shape, _) in layout.items()} == {
        "codes": (8, 3, 32),
        "scale": (8, 3, 2),
        "zero": (8, 3, 2),
    }


def test_a_stack_and_a_vector_come_back(tmp_path: Path) -> None:
    for name, shape in [("int3-channel", (2, 3, 5)), ("int4-g32", (64,))]:
        made = quantized(name, shape)
        write(tmp_path / name, [made])
        source = SafetensorsSource(tmp_path / name)
        assert source.tensors[f"layers.{name}.weight"] == made[0].info
        assert np.array_equal(source.rows(f"layers.{name}.weight"), made[2])


def test_fp8_bytes_are_e4m3() -> None:
    _, parts, values = quantized("fp8", (4, 100))
    decoded = parts["codes"].view(ml_dtypes.float8_e4m3fn).astype(np.float32) * parts["scale"]
    assert np.array_equal(decoded, values)


def test_fp8_patterns_read() -> None:
    codec = NativeCodec(get_format("fp8"))
    one = np.ones((1, 1), np.float32)
    zeros = codec.decode({"codes": np.array([[0x80, 0x00]], np.uint8), "scale": one}, 2)
    assert zeros.values().tolist() == [[0.0, 0.0]]
    assert zeros.codes.tolist() == [[126, 126]]
    for pattern in (0x7F, 0xFF):
        with pytest.raises(
            TensorError, match=rf"fp8 has no value for the pattern {pattern:#04x} \(NaN\) at row 0, column 1"
        ):
            codec.decode({"codes": np.array([[0, pattern]], np.uint8), "scale": one}, 2)


def test_fp4_nibbles_are_bitsandbytes() -> None:
    format = get_format("fp4")
    w = np.tile(np.float32([12, -12, 0.0625, 0, 2, -3, 8, 6]), 8)[None]
    codes, params = nearest(w, format)
    parts = NativeCodec(format).encode(QuantTensor(format, codes, params))
    assert parts["codes"][0, :4].tolist() == [0xB3, 0x01, 0xF6, 0x52]  # low nibble first
    minus_zero = {"codes": np.full((1, 32), 0x88, np.uint8), "scale": params["scale"]}
    assert not NativeCodec(format).decode(minus_zero, 64).values().any()


@pytest.mark.parametrize("name", NAMES)
def test_torch_tensors_encode_to_the_same_bytes(name: str) -> None:
    format = get_format(name)
    w = np.random.default_rng(9).standard_normal((3, 256)).astype(np.float32)
    codes, params = nearest(w, format)
    expected = NativeCodec(format).encode(QuantTensor(format, codes, params))

    def to_torch(x: np.ndarray) -> torch.Tensor:
        if x.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(x)

    tensor = QuantTensor(format, to_torch(codes), {part: to_torch(p) for part, p in params.items()})
    parts = NativeCodec(format).encode(tensor)
    assert {part: p.tobytes() for part, p in parts.items()} == {part: p.tobytes() for part, p in expected.items()}


def test_impossible_shapes() -> None:
    with pytest.raises(UnsupportedError, match="scalar"):
        NativeCodec(FORMATS["fp8"]).layout(())
    with pytest.raises(UnsupportedError, match="nf4 needs rows whose length divides by 64; these have 60"):
        NativeCodec(FORMATS["nf4"]).layout((3, 60))


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.multiple > 1])
def test_every_format_refuses_a_row_it_cannot_divide(name: str) -> None:
    codec = NativeCodec(FORMATS[name])
    for cols in (0, codec.format.multiple - 1, codec.format.multiple + 1):
        with pytest.raises(UnsupportedError, match=f"{name} needs rows whose length divides by"):
            codec.layout((2, cols))


def rewrite(folder: Path, change: dict[str, object]) -> None:
    """Replace keys of the metadata of model.safetensors."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for key, value in change.items():
        if value is None:
            del header["__metadata__"][key]
        else:
            header["__metadata__"][key] = value if isinstance(value, str) else json.dumps(value)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bitsmith.tensors": "nonsense"}, "bitsmith.tensors in its metadata: expected JSON in UTF-8"),
        ({"bitsmith.tensors": "[]"}, "bitsmith.tensors in its metadata is not a JSON object"),
        ({"bitsmith.tensors": "[" * 100_000}, "bitsmith.tensors in its metadata: expected JSON in UTF-8"),
        ({"bitsmith.tensors": {"layers.nf4.weight": "nf7"}}, "the format of 'layers.nf4.weight' is unknown"),
        ({"bitsmith.tensors": {"layers.nf4.weight": 4}}, "the format of 'layers.nf4.weight' is unknown"),
        ({"bitsmith.tensors": {"other": "nf4"}}, "'other' is nf4 but bitsmith.shapes"),
        ({"bitsmith.tensors": {"other": "nf4"}, "bitsmith.shapes": {"other": [3, 64]}}, "entry other.codes is missing"),
        ({"bitsmith.tensors": {"layers.nf4.weight": "int4-g64"}}, "entry layers.nf4.weight.scale is F32"),
        ({"bitsmith.shapes": {"layers.nf4.weight": [3, 128]}}, r"entry layers.nf4.weight.codes is U8 \[3, 32\]"),
        ({"bitsmith.shapes": {"layers.nf4.weight": [3, 100]}}, "shape .3, 100. is impossible"),
        ({"bitsmith.shapes": {"layers.nf4.weight": []}}, "gives it the shape"),
        ({"bitsmith.shapes": {"layers.nf4.weight": [1 << 40, 1 << 40, 64]}}, "cannot have the shape"),
        ({"bitsmith.shapes": {"layers.nf4.weight": [3, -64]}}, "gives it the shape"),
        ({"bitsmith.shapes": None}, "bitsmith.shapes"),
    ],
)
def test_damaged_metadata(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(tmp_path / "m", [quantized("nf4", (3, 64))])
    rewrite(tmp_path / "m", change)
    with pytest.raises(FileError, match=message):
        SafetensorsSource(tmp_path / "m")


def test_a_weight_both_plain_and_quantized(tmp_path: Path) -> None:
    made = quantized("nf4", (3, 64))
    twin = plain("layers.nf4.weight", np.zeros((3, 64), np.float32), "f32")
    tensors = [made[0], replace(twin[0], info=replace(twin[0].info, name="x"))]
    layouts, _ = native_files(tensors, placeholder("1", "{}", []))
    content = layouts[0].header.replace(b'"x":{', b'"layers.nf4.weight":{')
    content = (len(content) - 8).to_bytes(8, "little") + content[8:] + bytes(layouts[0].size - len(layouts[0].header))
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FileError, match=r"'layers\.nf4\.weight' is there twice"):
        SafetensorsSource(tmp_path)


def test_damaged_codes_name_the_tensor(tmp_path: Path) -> None:
    tensor, parts, values = quantized("fp8", (3, 64))
    parts["codes"][1, 5] = 0x7F
    write(tmp_path / "m", [(tensor, parts, values)])
    source = SafetensorsSource(tmp_path / "m")
    with pytest.raises(TensorError, match=r"layers\.fp8\.weight: fp8 has no value for the pattern 0x7f"):
        source.rows("layers.fp8.weight")
    assert np.array_equal(source.rows("layers.fp8.weight", 2, 3), values[2:3])


def test_metadata_names_formats_and_shapes() -> None:
    said = metadata({"a": ("nf4", (3, 64)), "b": ("int4-channel", (5,))})
    assert said == {
        "bitsmith.tensors": '{"a":"nf4","b":"int4-channel"}',
        "bitsmith.shapes": '{"a":[3,64],"b":[5]}',
    }
