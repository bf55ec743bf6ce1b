"""Our GGUF files read by the gguf package and by llama.cpp, and theirs by us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bitsmith.containers.gguf.metadata_values import Value, ValueType, array, f32, scalar, string, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.gguf.types import TYPES
from tests.gguf_files import Stored, random_stored, write_gguf
from tests.oracle import llama

NUMBERS = [t for t in ValueType if t not in (ValueType.BOOL, ValueType.STRING, ValueType.ARRAY)]
THEIR_NUMBERS = {t.value for t in gguf.GGMLQuantizationType}
# the package gives q8_1 40 bytes a block; ggml-common.h says 36
KNOWN_TO_PACKAGE = [name for name, kind in TYPES.items() if kind.number in THEIR_NUMBERS and name != "q8_1"]


def plain(value: Any) -> Any:
    """Nested lists and numpy vectors as nested lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("alignment", [32, 64])
def test_the_package_reads_our_keys(tmp_path: Path, alignment: int) -> None:
    keys = {
        "general.architecture": string("llama"),
        **({"general.alignment": u32(alignment)} if alignment != 32 else {}),
        **{f"n.{t.name}": scalar(t, 7) for t in NUMBERS},
        **{f"a.{t.name}": array([1, 2, 3], t) for t in NUMBERS},
        "yes": Value(ValueType.BOOL, True),
        "strings": array(["a", "", "漢字"]),
        "nested": array([array([1, 2]), array([3])]),
    }
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(5, np.float16)}
    write_gguf(tmp_path / "m.gguf", keys, tensors)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.alignment == alignment
    theirs = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert list(theirs) == list(keys)
    for name, value in keys.items():
        assert theirs[name].types[0].value == value.type
        if name != "nested":  # its GGUFReader joins nested arrays
            assert theirs[name].contents() == plain(value.plain())
    assert [t.name for t in reader.tensors] == ["b", "a"]
    for tensor in reader.tensors:
        assert np.array_equal(tensor.data, tensors[tensor.name])


def test_the_package_finds_every_type_where_we_put_it(tmp_path: Path) -> None:
    assert {"q4_k", "iq1_m", "tq2_0", "mxfp4"} < set(KNOWN_TO_PACKAGE)
    tensors = {name: random_stored(name, (3, 2 * TYPES[name].block), 1) for name in KNOWN_TO_PACKAGE}
    write_gguf(tmp_path / "m.gguf", {}, tensors)
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        content = tensors[tensor.name]
        assert tensor.tensor_type.value == TYPES[tensor.name].number
        assert tensor.shape.tolist() == list(reversed(content.shape))
        assert tensor.data.tobytes() == content.data.tobytes()


def test_we_read_what_the_package_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(64)
    for t in NUMBERS:
        writer.add_key_value(f"n.{t.name}", 7, gguf.GGUFValueType(t.value))
    writer.add_bool("yes", True)
    writer.add_string("text", "ключ")
    writer.add_array("tokens", ["<s>", "é", "漢"])
    writer.add_array("scores", [0.5, -1.5])
    writer.add_array("types", [3, 1, 1])
    writer.add_array("nested", [[1, 2], [3, 4]])
    w = np.random.default_rng(0).standard_normal((4, 64), np.float32)
    writer.add_tensor("f32", w)
    writer.add_tensor("f16", w.astype(np.float16))
    quantized = gguf.quantize(w, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8_0", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GgufSource(tmp_path / "m.gguf")
    assert source.alignment == 64
    for t in NUMBERS:
        assert source.keys[f"n.{t.name}"] == scalar(t, 7)
    assert {name: plain(source.metadata[name]) for name in ("yes", "text", "tokens", "scores", "types", "nested")} == {
        "yes": True,
        "text": "ключ",
        "tokens": ["<s>", "é", "漢"],
        "scores": [0.5, -1.5],
        "types": [3, 1, 1],
        "nested": [[1, 2], [3, 4]],
    }
    assert np.array_equal(source.rows("f32"), w)
    assert np.array_equal(source.rows("f16", 1, 3), w[1:3].astype(np.float16))
    assert source.tensors["q8_0"].shape == (4, 64)
    assert np.array_equal(source.rows("q8_0"), gguf.dequantize(quantized, gguf.GGMLQuantizationType.Q8_0))


def test_our_rewrite_of_the_packages_file_is_the_same(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_array("tokens", ["a", "b"])
    tensors = {"w": np.ones((3, 5), np.float32), "v": np.ones(7, np.float16)}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_gguf(tmp_path / "b.gguf", GgufSource(tmp_path / "a.gguf").keys, tensors)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_we_open_a_set_that_the_package_split(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    tensors = {f"t{i}": np.full((2, 8), i, np.float32) for i in range(5)}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GgufSource(tmp_path / "m-00002-of-00003.gguf")
    assert len(source.files) == 3
    assert source.architecture == "llama"
    assert all(np.array_equal(source.rows(name), tensor) for name, tensor in tensors.items())


def small_llama() -> tuple[dict[str, Value], dict[str, np.ndarray | Stored]]:
    """A Llama of one layer with random weights and no tokenizer."""
    vocab, hidden, inner = 64, 32, 64
    keys = {
        "general.architecture": string("llama"),
        "llama.block_count": u32(1),
        "llama.context_length": u32(64),
        "llama.embedding_length": u32(hidden),
        "llama.feed_forward_length": u32(inner),
        "llama.attention.head_count": u32(4),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.vocab_size": u32(vocab),
        "tokenizer.ggml.model": string("none"),
    }
    shapes = {
        "token_embd.weight": (vocab, hidden),
        "output.weight": (vocab, hidden),
        "blk.0.ffn_gate.weight": (inner, hidden),
        "blk.0.ffn_up.weight": (inner, hidden),
        "blk.0.ffn_down.weight": (hidden, inner),
        **{f"blk.0.attn_{name}.weight": (hidden, hidden) for name in ("q", "k", "v", "output")},
    }
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray | Stored] = {
        name: rng.standard_normal(shape, np.float32) * np.float32(0.2) for name, shape in shapes.items()
    }
    norms = ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")
    return keys, {**tensors, **{name: np.ones(hidden, np.float32) for name in norms}}


@pytest.mark.parametrize("limit", [None, 20_000, 10_000])
@pytest.mark.parametrize("alignment", [32, 256])
def test_llama_cpp_loads_our_files(tmp_path: Path, limit: int | None, alignment: int) -> None:
    keys, tensors = small_llama()
    expected = logits(write_gguf(tmp_path / "one.gguf", keys, tensors))
    keys = {"general.alignment": u32(alignment), **keys}
    paths = write_gguf(tmp_path / "m.gguf", keys, tensors, max_shard_bytes=limit)
    assert (len(paths) > 1) == (limit is not None)
    assert np.array_equal(logits(paths), expected)


def test_llama_cpp_loads_a_set_whose_first_file_holds_only_metadata(tmp_path: Path) -> None:
    keys, tensors = small_llama()
    keys["long"] = string("x" * 8000)
    paths = write_gguf(tmp_path / "m.gguf", keys, tensors, max_shard_bytes=9000)
    assert not gguf.GGUFReader(paths[0]).tensors
    assert np.array_equal(logits(paths), logits(write_gguf(tmp_path / "one.gguf", keys, tensors)))


def logits(paths: list[Path]) -> np.ndarray:
    model = llama.load(paths[0])
    try:
        return model.logits([1, 5, 9])
    finally:
        model.close()
