"""gptq, awq, compressed and bnb folders: what stays in 16 bits, what the configuration says, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import BitsmithError, FileError, TensorError, UnsupportedError, UsageError
from bitsmith.runtime.language_model import LanguageModel
from tests.tiny import CONFIG, make_folder, weights

DOWN = "model.layers.0.mlp.down_proj"
TOKENS = np.random.default_rng(0).integers(2, 4096, (1, 24))


def made(model: Path, to: str, out: Path, **words: Any) -> tuple[SafetensorsSource, dict[str, Any]]:
    """The folder written, and its config.json."""
    result = bitsmith.quantize(model, to=to, out=out, **words)
    return SafetensorsSource(result.out), json.loads((out / "config.json").read_text())


def layouts(source: SafetensorsSource) -> dict[str, str]:
    return {name: info.layout for name, info in source.tensors.items() if info.rows > 1}


@pytest.mark.parametrize(
    ("to", "words", "layout", "says"),
    [
        ("gptq/int4", {}, "gptq/int4-g64", {"bits": 4, "group_size": 64, "sym": True, "checkpoint_format": "gptq"}),
        ("gptq/int8", {"group_size": 32}, "gptq/int8-g32", {"bits": 8, "group_size": 32, "desc_act": False}),
        ("gptq/int4", {"group_size": -1}, "gptq/int4-channel", {"group_size": -1, "quant_method": "gptq"}),
        (
            "gptq/int4",
            {"symmetric": False},
            "gptq/int4-g64-asym-v2",
            {"sym": False, "checkpoint_format": "gptq_v2"},
        ),
        ("gptq/int3", {}, "gptq/int3-g64-v2", {"bits": 3, "sym": True, "checkpoint_format": "gptq_v2"}),
        ("gptq/int2-g32-asym", {}, "gptq/int2-g32-asym-v2", {"bits": 2, "group_size": 32, "sym": False}),
        ("awq/int4", {}, "awq/int4-g64", {"bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}),
        ("compressed/w4a16", {}, "compressed/pack-int4-g64", {"format": "pack-quantized", "ignore": ["lm_head"]}),
        ("compressed/w8a16", {"symmetric": False}, "compressed/pack-int8-g64-asym", {"format": "pack-quantized"}),
        ("compressed/w8a8", {}, "compressed/int8-channel", {"format": "int-quantized"}),
        ("compressed/fp8", {}, "compressed/fp8-channel", {"format": "float-quantized"}),
        ("compressed/fp8-tensor", {}, "compressed/fp8-tensor", {"quantization_status": "compressed"}),
    ],
)
def test_linear_layers_and_what_the_configuration_says(
    tiny: Path, tmp_path: Path, to: str, words: dict[str, Any], layout: str, says: dict[str, Any]
) -> None:
    source, config = made(tiny, to, tmp_path / "out", **words)
    for name, found in layouts(source).items():
        assert found == ("bf16" if "embed" in name or "lm_head" in name else layout), name
    said = config["quantization_config"]
    assert {key: said[key] for key in says} == says
    assert config["torch_dtype"] == ("bfloat16" if to.startswith("compressed") else "float16")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    if to.startswith("gptq"):
        assert json.loads((tmp_path / "out" / "quantize_config.json").read_text()) == said
    original = SafetensorsSource(tiny)
    for name in source.tensors:
        w, decoded = original.rows(name), source.rows(name)
        worst = {"2": 0.9, "3": 0.1}.get(to.removeprefix("gptq/int")[0], 0.02)
        assert ((w - decoded) ** 2).sum() <= worst * (w**2).sum(), name


def test_what_is_kept_is_listed(tiny: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {"keep": [r"layers\.0\.mlp\.down"]}
    source, config = made(tiny, "gptq/int4", tmp_path / "gptq", **words)
    assert layouts(source)[f"{DOWN}.weight"] == "bf16"
    assert config["quantization_config"]["dynamic"] == {r"-:^model\.layers\.0\.mlp\.down_proj$": {}}
    _, config = made(tiny, "awq/int4", tmp_path / "awq", **words)
    assert sorted(config["quantization_config"]["modules_to_not_convert"]) == ["lm_head", DOWN]
    old = json.loads((tmp_path / "awq" / "quant_config.json").read_text())
    assert (old["w_bit"], old["q_group_size"], old["modules_to_not_convert"]) == (4, 64, ["lm_head", DOWN])
    _, config = made(tiny, "compressed/w4a16", tmp_path / "compressed", **words)
    assert sorted(config["quantization_config"]["ignore"]) == ["lm_head", DOWN]


def test_rules_make_modules_differ_and_are_read_back(tiny: Path, tmp_path: Path) -> None:
    rules = [r"layers\.0\.self_attn\.[qkv]=int8-g32", "lm_head=int4", r"layers\.1\.mlp=f16"]
    source, config = made(tiny, "gptq/int4", tmp_path / "gptq", rules=rules)
    found = layouts(source)
    assert found["model.layers.0.self_attn.q_proj.weight"] == "gptq/int8-g32"
    assert found["lm_head.weight"] == found[f"{DOWN}.weight"] == "gptq/int4-g64"
    assert found["model.layers.1.mlp.up_proj.weight"] == "f16"
    said = config["quantization_config"]
    assert said["lm_head"] is True
    assert said["dynamic"][r"+:^model\.layers\.0\.self_attn\.qkv_proj$"] == {"bits": 8, "group_size": 32, "sym": True}
    source, config = made(tiny, "gptq/int4", tmp_path / "mixed", rules=["lm_head=int3"])
    assert config["quantization_config"]["checkpoint_format"] == "gptq_v2"  # one module that v1 cannot hold
    assert {layout for layout in layouts(source).values() if "gptq" in layout} == {
        "gptq/int4-g64-v2",
        "gptq/int3-g64-v2",
    }
    rules = [r"layers\.0\.mlp=w8a8", r"layers\.1\.mlp=fp8", r"self_attn\.o=w8a16-channel"]
    source, config = made(tiny, "compressed/w4a16", tmp_path / "compressed", rules=rules)
    assert set(layouts(source).values()) == {
        *("bf16", "compressed/pack-int4-g64", "compressed/int8-channel", "compressed/fp8-channel"),
        "compressed/pack-int8-channel",
    }
    said = config["quantization_config"]
    assert said["format"] == "mixed-precision"
    assert [group["format"] for group in said["config_groups"].values()].count("pack-quantized") == 2
    assert said["config_groups"]["group_0"]["targets"] == ["Linear"]


def test_files_run_and_go_on_to_other_containers(tiny: Path, tmp_path: Path) -> None:
    """Read back by the decoder, quantized again, and copied byte for byte where nothing changes."""
    first = bitsmith.quantize(tiny, to="awq/int4", out=tmp_path / "awq")
    loaded = bitsmith.load(first.out)
    assert isinstance(loaded, LanguageModel)
    assert np.isfinite(loaded.logits(TOKENS)).all()
    with pytest.raises(UnsupportedError, match=r"already quantized.*awq/int4-g64"):
        bitsmith.quantize(first.out, to="gptq/int4", out=tmp_path / "gptq")
    again = bitsmith.quantize(first.out, to="awq/int4", out=tmp_path / "again", requantize=True)
    assert again.manifest is not None
    assert first.manifest is not None
    ours = {record.name: record.sha256 for record in again.manifest.tensors}
    assert ours == {record.name: record.sha256 for record in first.manifest.tensors}
    gguf = bitsmith.quantize(first.out, to="q8_0", out=tmp_path / "x.gguf", requantize=True)
    assert "blk.0.attn_q.weight" in GgufSource(gguf.out).tensors
    back = bitsmith.quantize(gguf.out, to="gptq/int8", out=tmp_path / "back", requantize=True)
    restored, original = SafetensorsSource(back.out), SafetensorsSource(first.out)
    for name in original.tensors:
        assert np.allclose(restored.rows(name), original.rows(name), atol=0.02), name
    assert bitsmith.inspect(back.out, verify=True).problems == ()


@pytest.mark.parametrize("to", ["gptq/int4", "awq/int4", "compressed/w8a16-asym"])
def test_shards(tiny: Path, tmp_path: Path, to: str) -> None:
    whole, _ = made(tiny, to, tmp_path / "whole")
    split, _ = made(tiny, to, tmp_path / "split", max_shard_size="500kB")
    assert len(split.files) > 2
    assert all(np.array_equal(whole.rows(name), split.rows(name)) for name in whole.tensors)
    assert bitsmith.inspect(tmp_path / "split", verify=True).problems == ()


@pytest.mark.parametrize(
    ("to", "words", "message"),
    [
        ("gptq/int5", {}, "gptq has no scheme 'int5'; known: int8, int4, int3, int2"),
        ("gptq/q4_k", {}, "gptq has no scheme 'q4_k'"),
        ("awq/int8", {}, "awq has no scheme 'int8'; known: int4"),
        ("compressed/int4", {}, "known: w4a16, w8a16, w8a8, fp8, fp8-tensor"),
        ("awq/int4", {"symmetric": True}, "awq/int4 always has zero points; leave out symmetric=True"),
        ("compressed/w8a8", {"symmetric": False}, "w8a8 has no zero points; leave out symmetric=False"),
        ("compressed/fp8", {"group_size": 64}, "fp8 has one scale per row or tensor, no groups"),
        ("gptq/int4-g64", {"group_size": 32}, "contradict each other"),
        ("gptq/int4", {"group_size": 0}, "group_size=0"),
        ("gptq/int4", {"keep": ["("]}, "is not a regular expression"),
        ("gptq/int4", {"rules": ["down=q4_k"]}, "gptq has no scheme 'q4_k'"),
        ("awq/int4", {"rules": ["down=int4"]}, "unknown type '?int4"),
        ("gptq/int4", {"pure": True}, "pure=True is for gguf and native"),
        ("q8_0", {"keep": ["down"]}, "keep= is for gptq, awq, compressed, bnb, mlx and modelopt"),
        ("native/int4", {"group_size": 64}, "group_size= is for gptq, awq, compressed, bnb, mlx and modelopt"),
    ],
)
def test_wrong_calls(tiny: Path, to: str, words: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bitsmith.quantize(tiny, to=to, dry_run=True, **words)


@pytest.mark.parametrize(
    ("changes", "to", "words", "message"),
    [
        ({}, "gptq/int4", {"group_size": 128}, r"_proj\.weight: int4-g128-f16 needs rows.*divides by 128.*keep="),
        ({"intermediate_size": 72}, "gptq/int4", {}, r"down_proj\.weight: rows of 72 weights.*group_size=-1"),
        ({"intermediate_size": 68}, "awq/int4", {"group_size": -1}, r"gate_proj\.weight: .*rows divide by 8"),
        ({}, "gptq/int4", {"keep": ["."]}, "no linear layer is left"),
    ],
)
def test_what_cannot_be_held_fails_in_the_plan(
    tmp_path: Path, changes: dict[str, Any], to: str, words: dict[str, Any], message: str
) -> None:
    config = {**CONFIG, **changes}
    folder = make_folder(tmp_path / "model", tensors=weights(config), **changes)
    with pytest.raises(BitsmithError, match=message):
        bitsmith.quantize(folder, to=to, dry_run=True, **words)


def test_weights_beyond_float16_scales_are_refused(tmp_path: Path) -> None:
    tensors = weights(CONFIG)
    tensors[f"{DOWN}.weight"][0, 0] = 1e6
    folder = make_folder(tmp_path / "model", tensors=tensors)
    with pytest.raises(TensorError, match=rf"{DOWN}\.weight: .*float16"):
        bitsmith.quantize(folder, to="gptq/int4", out=tmp_path / "gptq")
    bitsmith.quantize(folder, to="compressed/w4a16", out=tmp_path / "compressed")


def test_warnings_say_what_vllm_refuses(tiny: Path) -> None:
    def warnings(**words: Any) -> str:
        return " ".join(bitsmith.quantize(tiny, dry_run=True, **words).warnings)

    assert warnings(to="gptq/int4") == ""
    assert "vLLM reads only symmetric gptq" in warnings(to="gptq/int3")
    assert "groups of 16" in warnings(to="awq/int4", group_size=16)
    assert "q_proj, model.layers.0.self_attn.k_proj" in warnings(to="gptq/int4", keep=[r"layers\.0\.self_attn\.k"])
    with pytest.raises(UsageError, match="matches no tensor"):
        warnings(to="gptq/int4", keep=["nothing_like_it"])


def test_tied_models_list_their_head(tmp_path: Path) -> None:
    config = {**CONFIG, "tie_word_embeddings": True}
    folder = make_folder(tmp_path / "model", tensors=weights(config), tie_word_embeddings=True)
    source, said = made(folder, "compressed/w8a8", tmp_path / "out")
    assert "lm_head.weight" not in source.tensors
    assert said["quantization_config"]["ignore"] == ["lm_head"]


@pytest.mark.parametrize("to", ["gptq/int4", "native/int8"])
def test_tensors_that_contradict_the_configuration_are_said(tmp_path: Path, to: str) -> None:
    """Such folders are written, but not in silence; what calibrates or runs refuses them."""
    tensors = weights(CONFIG)
    del tensors[f"{DOWN}.weight"]
    folder = make_folder(tmp_path / "m", tensors=tensors)
    written = bitsmith.quantize(folder, to=to, out=tmp_path / "out")
    assert f"1 of 21 tensors that the configuration requires (2 layers) are missing, first {DOWN}.weight" in "".join(
        written.warnings
    )


def _other_gguf(tiny: Path, folder: Path, architecture: str, *, without: str = "") -> Path:
    """A GGUF file of a Llama under another architecture's name, or without a tensor."""
    import gguf

    whole = bitsmith.convert(tiny, to="gguf/f32", out=folder / "whole.gguf").out
    reader, writer = gguf.GGUFReader(whole), gguf.GGUFWriter(folder / "other.gguf", architecture)
    for key, found in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture", "bitsmith.")):
            writer.add_key_value(key, found.contents(), found.types[0], found.types[-1])
    for tensor in reader.tensors:
        if tensor.name != without:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "other.gguf"


def test_gguf_files_of_unknown_architecture_go_to_native_alone(tiny: Path, tmp_path: Path) -> None:
    other = _other_gguf(tiny, tmp_path, "llama9")
    for to in ("gptq/int4", "awq/int4", "compressed/w8a16", "bnb/nf4"):
        with pytest.raises(UnsupportedError, match=r"unknown general\.architecture 'llama9'"):
            bitsmith.quantize(other, to=to, out=tmp_path / "out")
    written = bitsmith.quantize(other, to="native/int8", out=tmp_path / "out")
    assert "14 matrices were taken for linear layers by their names and shapes, the first is blk.0" in "".join(
        written.warnings
    )
    found = layouts(SafetensorsSource(written.out))
    assert {name for name, layout in found.items() if layout == "f32"} == {"token_embd.weight", "output.weight"}


@pytest.mark.parametrize("to", ["native/int8", "gptq/int4"])
def test_gguf_files_that_lack_tensors_become_no_folders(tiny: Path, tmp_path: Path, to: str) -> None:
    less = _other_gguf(tiny, tmp_path, "llama", without="blk.1.ffn_down.weight")
    with pytest.raises(FileError, match=r"are missing, first blk\.1\.ffn_down\.weight"):
        bitsmith.quantize(less, to=to, out=tmp_path / "out")


def test_gguf_files_that_lack_tensors_are_said(tiny: Path, tmp_path: Path) -> None:
    less = _other_gguf(tiny, tmp_path, "llama", without="blk.1.ffn_down.weight")
    written = bitsmith.quantize(less, to="q8_0", out=tmp_path / "q.gguf")
    assert "are missing, first blk.1.ffn_down.weight" in "".join(written.warnings)
