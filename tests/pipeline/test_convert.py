"""convert: 16 bits from any format, and merging, splitting and renaming with every byte kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import bitsmith
from bitsmith.containers.gguf.metadata_values import string, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.hf_folder import CONFIG
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.containers.safetensors_header import read_header
from bitsmith.errors import FileError, UnsupportedError, UsageError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.models.manifests import recipe_of
from tests.gguf_files import random_stored, write_gguf
from tests.tiny import CONFIG as TINY
from tests.tiny import make_folder, weights

FOLDERS = ["native/nf4", "native/int4-asym", "gptq/int4", "gptq/int3-asym", "awq/int4", "compressed/w4a16-asym"]
FOLDERS += ["compressed/w8a8", "compressed/fp8-tensor"]


def gguf_hashes(path: Path) -> dict[str, tuple[str, str]]:
    """Layout and hash of every tensor's bytes."""
    source = GgufSource(path)
    return {
        name: (info.layout, hashlib.sha256(source.packed(name).parts["data"].tobytes()).hexdigest())
        for name, info in source.tensors.items()
    }


def entries(folder: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Dtype, shape and hash of every entry of all safetensors files."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        content = file.read_bytes()
        for name, entry in read_header(file).entries.items():
            data = content[entry.offset : entry.offset + entry.nbytes]
            found[name] = (entry.dtype, entry.shape, hashlib.sha256(data).hexdigest())
    return found


@pytest.mark.parametrize("to", ["bf16", "f16", "f32"])
def test_a_quantized_gguf_file_becomes_a_folder_of_floats(tiny: Path, tmp_path: Path, to: str) -> None:
    packed = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "m-Q8_0.gguf").out
    made = bitsmith.convert(packed, to=to, out=tmp_path / "floats")
    assert made.warnings == ()
    source, folder = GgufSource(packed), SafetensorsSource(made.out)
    assert set(folder.tensors) == set(SafetensorsSource(tiny).tensors)
    assert {info.layout for info in folder.tensors.values() if info.rows > 1} == {to}
    step = {"bf16": 2**-8, "f16": 2**-11, "f32": 0}[to]
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_allclose(folder.rows(name), source.rows("blk.1.ffn_down.weight"), rtol=step, atol=1e-7)
    dtype = json.loads((made.out / CONFIG).read_text())["torch_dtype"]
    assert dtype == {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[to]
    assert bitsmith.inspect(made.out, verify=True).problems == ()


@pytest.mark.parametrize("to", FOLDERS)
def test_every_quantized_folder_becomes_floats_in_both_containers(tiny: Path, tmp_path: Path, to: str) -> None:
    packed = bitsmith.quantize(tiny, to=to, out=tmp_path / "packed").out
    folder = bitsmith.convert(packed, to="f32", out=tmp_path / "floats").out
    file = bitsmith.convert(packed, to="f32", out=tmp_path / "m.gguf").out
    assert "quantization_config" not in json.loads((folder / CONFIG).read_text())
    name = "model.layers.0.mlp.up_proj.weight"
    expected = SafetensorsSource(packed).rows(name)
    np.testing.assert_array_equal(SafetensorsSource(folder).rows(name), expected)
    np.testing.assert_array_equal(GgufSource(file).rows("blk.0.ffn_up.weight"), expected)


def test_the_dtype_of_a_float_folder_is_that_of_its_weights(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.convert(tiny, to="f16", out=tmp_path / "half")
    assert json.loads((made.out / CONFIG).read_text())["torch_dtype"] == "float16"


def test_a_split_gguf_set_is_merged_and_split_again(tiny: Path, tmp_path: Path) -> None:
    packed = bitsmith.quantize(tiny, to="q4_k_m", out=tmp_path / "m.gguf")
    split = bitsmith.convert(packed.out, max_shard_size="300kB", out=tmp_path / "s.gguf")
    parts = [path.name for path in split.paths]
    assert len(parts) > 2
    assert parts == [f"s-{n:05d}-of-{len(parts):05d}.gguf" for n in range(1, len(parts) + 1)]
    assert all(path.stat().st_size <= 300_000 for path in split.paths)
    assert split.size == sum(path.stat().st_size for path in split.paths)
    merged = bitsmith.convert(split.paths[1], out=tmp_path / "back.gguf")
    assert gguf_hashes(packed.out) == gguf_hashes(split.out) == gguf_hashes(merged.out)
    keys = {key: value for key, value in GgufSource(packed.out).keys.items() if not key.startswith("bitsmith.")}
    assert keys == {k: v for k, v in GgufSource(merged.out).keys.items() if not k.startswith("bitsmith.")}
    for made in (split.out, merged.out):
        assert bitsmith.inspect(made, verify=True).problems == ()
    recipe = recipe_of(GgufSource(merged.out))
    assert recipe is not None
    assert (recipe["command"], recipe["source_recipe"]["source_recipe"]["to"]) == ("convert", "gguf/q4_k_m")


def test_types_that_are_only_read_are_copied(tmp_path: Path) -> None:
    layouts = ("iq2_xs", "q8_1", "tq1_0", "mxfp4", "i32", "iq1_m")
    tensors = {f"t.{layout}": random_stored(layout, (3, 256)) for layout in layouts}
    keys = {"general.architecture": string("unheard-of"), "general.alignment": u32(64), "x.y": u32(7)}
    write_gguf(tmp_path / "m.gguf", keys, tensors)
    made = bitsmith.convert(tmp_path / "m.gguf", model_name="Named", out=tmp_path / "n.gguf")
    assert gguf_hashes(made.out) == gguf_hashes(tmp_path / "m.gguf")
    source = GgufSource(made.out)
    assert (source.metadata["general.name"], source.metadata["x.y"], source.alignment) == ("Named", 7, 64)


@pytest.mark.parametrize("to", FOLDERS)
def test_quantized_folders_are_split_and_merged_byte_for_byte(tiny: Path, tmp_path: Path, to: str) -> None:
    packed = bitsmith.quantize(tiny, to=to, out=tmp_path / "packed").out
    split = bitsmith.convert(packed, max_shard_size="150kB", out=tmp_path / "split")
    assert len([path for path in split.paths if path.suffix == ".safetensors"]) > 2
    merged = bitsmith.convert(split.out, out=tmp_path / "merged")
    assert entries(packed) == entries(split.out) == entries(merged.out)
    small = {path.name: path.read_bytes() for path in packed.iterdir() if path.suffix != ".safetensors"}
    assert small == {path.name: path.read_bytes() for path in merged.out.iterdir() if path.suffix != ".safetensors"}
    for made in (split.out, merged.out):
        assert bitsmith.inspect(made, verify=True).problems == ()
        assert open_checkpoint(made).source.tensors.keys() == open_checkpoint(packed).source.tensors.keys()


def test_entries_beside_weights_and_whole_numbers_stay(tiny: Path, tmp_path: Path) -> None:
    packed = bitsmith.quantize(tiny, to="compressed/w8a8", out=tmp_path / "packed").out
    module = "model.layers.0.mlp.up_proj"
    more = {f"{module}.output_scale": np.float32([0.5]), f"{module}.input_scale": np.float32([0.25])}
    more["model.ids"] = np.arange(6, dtype=np.int64).reshape(2, 3)
    save_file(more, packed / "more.safetensors")
    names = {name: file.name for file in packed.glob("*.safetensors") for name in read_header(file).entries}
    index = {"metadata": {}, "weight_map": names}
    (packed / "model.safetensors").rename(packed / "first.safetensors")
    index["weight_map"] = {name: file.replace("model.", "first.") for name, file in names.items()}
    (packed / "model.safetensors.index.json").write_text(json.dumps(index))
    merged = bitsmith.convert(packed, out=tmp_path / "merged").out
    assert entries(merged) == entries(packed)
    assert bitsmith.inspect(merged, verify=True).problems == ()
    floats = bitsmith.convert(packed, to="bf16", out=tmp_path / "floats").out
    assert entries(floats)["model.ids"] == entries(packed)["model.ids"]
    assert f"{module}.output_scale" not in entries(floats)


def test_weights_that_are_not_finite_are_copied_as_they_are(tmp_path: Path) -> None:
    tensors = weights(TINY)
    tensors["model.layers.0.mlp.up_proj.weight"][1, 1] = np.inf
    folder = make_folder(tmp_path / "odd", tensors=tensors)
    made = bitsmith.convert(folder, max_shard_size="300kB", out=tmp_path / "split")
    assert entries(made.out) == entries(folder)


def test_a_dry_run_writes_nothing_and_tells_the_size(tiny: Path, tmp_path: Path) -> None:
    planned = bitsmith.convert(tiny, to="gguf/bf16", out=tmp_path / "x.gguf", dry_run=True)
    assert not (tmp_path / "x.gguf").exists()
    made = bitsmith.convert(tiny, to="gguf/bf16", out=tmp_path / "x.gguf", model_name="A name")
    assert GgufSource(made.out).metadata["general.name"] == "A name"
    assert bitsmith.convert(tiny, to="gguf/bf16", out=tmp_path / "y.gguf").size == planned.size


def test_names_made_from_the_model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "My-Model-Q8_0.gguf").out
    monkeypatch.chdir(tmp_path)
    for words, name in (
        ({"to": "bf16"}, "My-Model-bf16"),
        ({"to": "gguf/f16"}, "My-Model-F16.gguf"),
        ({"model_name": "Another / name"}, "Another-name.gguf"),
        ({"max_shard_size": "600kB"}, "My-Model-Q8_0-split-00001-of-00002.gguf"),
    ):
        assert str(bitsmith.convert(packed, dry_run=True, **words).out) == name  # type: ignore[arg-type]
    split = bitsmith.convert(packed, max_shard_size="600kB")
    assert str(bitsmith.convert(split.out).out) == "My-Model-Q8_0-split-merged.gguf"
    assert str(bitsmith.convert(tiny, max_shard_size="600kB", dry_run=True).out) == "tiny-split"


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({}, UsageError, "nothing to change"),
        ({"to": "q4_k_m"}, UsageError, "For other formats use `bitsmith quantize`"),
        ({"to": "gptq/f16"}, UsageError, "bitsmith quantize"),
        ({"to": "bf16", "model_name": "x"}, UsageError, "model_name= is for GGUF"),
        ({"to": "hf/bf16", "out": "x.gguf"}, UsageError, "the output is a Hugging Face folder"),
        ({"max_shard_size": "many"}, UsageError, "max_shard_size="),
    ],
)
def test_wrong_calls(tiny: Path, words: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bitsmith.convert(tiny, **words)  # type: ignore[arg-type]


def test_models_that_cannot_be_converted(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"general.architecture": string("odd")}, {"a": np.ones((2, 32), np.float32)})
    with pytest.raises(UnsupportedError, match="odd"):
        bitsmith.convert(tmp_path / "m.gguf", to="bf16", out=tmp_path / "x")
    write_gguf(tmp_path / "none.gguf", {"general.architecture": string("llama")}, {})
    with pytest.raises(FileError, match="no tensors"):
        bitsmith.convert(tmp_path / "none.gguf", model_name="x", out=tmp_path / "y.gguf")
    assert not (tmp_path / "x").exists()


def test_a_source_is_never_replaced(tiny: Path, tmp_path: Path) -> None:
    packed = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "m.gguf").out
    split = bitsmith.convert(packed, max_shard_size="600kB", out=tmp_path / "s.gguf")
    before = {path: path.read_bytes() for path in (packed, *split.paths)}
    for source, out in ((packed, packed), (split.out, split.paths[1]), (split.out, tmp_path / "s.gguf")):
        with pytest.raises(UsageError, match="replace"):
            bitsmith.convert(source, model_name="x", out=out, force=True)
    with pytest.raises(UsageError, match="replace"):
        bitsmith.convert(tiny, to="f16", out=tiny, force=True)
    assert {path: path.read_bytes() for path in before} == before


def test_a_single_shard_is_not_a_model(tiny: Path, tmp_path: Path) -> None:
    split = bitsmith.convert(tiny, max_shard_size="300kB", out=tmp_path / "split")
    shard = next(path for path in split.paths if path.suffix == ".safetensors")
    with pytest.raises(UsageError, match=r"one of the shards of a model; give the folder, .*split"):
        bitsmith.convert(shard, to="f16", out=tmp_path / "x")
