"""What a bnb folder holds, what stays in 16 bits and why, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bitsmith
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import TensorError, UnsupportedError, UsageError
from tests.families import folder_of
from tests.tiny import make_folder


def made(model: Path, to: str, out: Path, **words: Any) -> tuple[SafetensorsSource, dict[str, Any]]:
    result = bitsmith.quantize(model, to=to, out=out, **words)
    config = json.loads((result.out / "config.json").read_text())
    return SafetensorsSource(result.out), config["quantization_config"]


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8"])
def test_linear_layers_alone(tiny: Path, tmp_path: Path, name: str) -> None:
    source, config = made(tiny, f"bnb/{name}", tmp_path / "made", keep=["layers.0.self_attn.o_proj"])
    layouts = {tensor: info.layout for tensor, info in source.tensors.items()}
    quantized = [tensor for tensor, layout in layouts.items() if layout == f"bnb/{name}"]
    assert len(quantized) == 13
    assert layouts["lm_head.weight"] == layouts["model.embed_tokens.weight"] == "bf16"
    assert config["quant_method"] == "bitsandbytes"
    assert sorted(config["llm_int8_skip_modules"]) == ["lm_head", "model.layers.0.self_attn.o_proj"]
    assert (config["load_in_4bit"], config["load_in_8bit"]) == (name != "int8", name == "int8")
    assert config["bnb_4bit_quant_type"] == ("nf4" if name == "nf4" else "fp4")


def test_double_quantization(tiny: Path, tmp_path: Path) -> None:
    flag, config = made(tiny, "bnb/nf4", tmp_path / "flag", double_quant=True)
    name, _ = made(tiny, "bnb/nf4-dq", tmp_path / "name")
    assert config["bnb_4bit_use_double_quant"] is True
    tensor = "model.layers.0.mlp.up_proj.weight"
    assert flag.tensors[tensor].layout == "bnb/nf4-dq"
    assert np.array_equal(flag.rows(tensor), name.rows(tensor))
    assert np.array_equal(flag.rows(tensor)[9:11], flag.rows(tensor, 9, 11))
    with pytest.raises(UsageError, match="is for bnb/nf4 and bnb/fp4"):
        bitsmith.quantize(tiny, to="bnb/int8", double_quant=True, dry_run=True)


def test_the_error_of_the_manifest_counts_the_scales_too(tiny: Path, tmp_path: Path) -> None:
    result = bitsmith.quantize(tiny, to="bnb/nf4-dq", out=tmp_path / "made")
    assert result.manifest is not None
    source = SafetensorsSource(tiny)
    quantized = SafetensorsSource(result.out)
    for record in result.manifest.tensors:
        if record.name.endswith("proj.weight"):
            w = source.rows(record.name).astype(np.float64)
            error = np.square(quantized.rows(record.name) - w).sum() / np.square(w).sum()
            assert record.error == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("method", ["nearest", "gptq", "learned"])
@pytest.mark.parametrize("to", ["bnb/nf4-dq", "bnb/fp4", "bnb/int8"])
def test_every_rounder(tiny: Path, tmp_path: Path, to: str, method: str) -> None:
    words = {"calibration": "default", "calibration_tokens": 128, "calibration_context": 32, "effort": "fast"}
    result = bitsmith.quantize(tiny, to=to, out=tmp_path / "made", method=method, **words)
    assert bitsmith.inspect(result.out, verify=True).problems == ()
    assert np.isfinite(np.asarray(bitsmith.load(result.out, kernel="torch").logits(np.array([[5, 6, 7]])))).all()


def test_settled_scales_do_not_depend_on_slabs(tiny: Path, tmp_path: Path) -> None:
    one, _ = made(tiny, "bnb/nf4-dq", tmp_path / "one", threads=1)
    two, _ = made(tiny, "bnb/nf4-dq", tmp_path / "two", threads=2)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
    assert one.tensors.keys() == two.tensors.keys()


def test_block_sizes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "wide", hidden_size=256, intermediate_size=512)
    for given in ({"group_size": 128}, {}):
        source, _ = made(folder, "bnb/nf4", tmp_path / f"made{len(given)}", **given)
        assert source.tensors["model.layers.0.mlp.up_proj.weight"].layout == ("bnb/nf4-g128" if given else "bnb/nf4")
    with pytest.raises(UsageError, match="has no zero points"):
        bitsmith.quantize(folder, to="bnb/nf4", symmetric=False, dry_run=True)


def test_rows_that_no_block_divides(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "odd", hidden_size=96)
    with pytest.raises(UnsupportedError, match=r"rows of 96 weights do not divide into groups of 64; keep the tensor"):
        bitsmith.quantize(folder, to="bnb/nf4", dry_run=True)


@pytest.mark.parametrize(("size", "said"), [(96, "not of 96"), (-1, "not of a whole row"), (16, "not of 16")])
def test_block_sizes_that_bitsandbytes_does_not_know(tiny: Path, size: int, said: str) -> None:
    with pytest.raises(UsageError, match=f"blocks of 32, 64, 128, .*{said}"):
        bitsmith.quantize(tiny, to="bnb/nf4", group_size=size, dry_run=True)


@pytest.mark.parametrize("to", ["bnb/nf4", "bnb/fp4-dq"])
def test_a_block_size_that_does_not_divide_the_rows(tiny: Path, to: str) -> None:
    """The plan says so, before any work."""
    with pytest.raises(UnsupportedError, match=r"proj\.weight: .* divides by 4096; these have \d+ weights.*keep="):
        bitsmith.quantize(tiny, to=to, group_size=4096, dry_run=True)


def test_a_keep_that_matches_nothing(tiny: Path) -> None:
    with pytest.raises(UsageError, match=r'keep=\["nothing_like_it"\] matches no tensor'):
        bitsmith.quantize(tiny, to="bnb/nf4", keep=["nothing_like_it"], dry_run=True)


def test_experts_are_refused_or_kept_on_demand(tmp_path: Path) -> None:
    folder, _ = folder_of("qwen3_moe", tmp_path / "moe")
    with pytest.raises(UnsupportedError, match=r"experts hold \d+% of the weights, and would stay in 16 bits"):
        bitsmith.quantize(folder, to="bnb/nf4", dry_run=True)
    planned = bitsmith.quantize(folder, to="bnb/nf4", keep=["experts"], dry_run=True)
    kept = [tensor for tensor in planned.plan.tensors if ".experts." in tensor.info.name]
    assert kept
    assert {tensor.info.layout for tensor in kept} <= {"bf16", "f16"}


@pytest.mark.parametrize("to", ["bnb/nf4", "gptq/int4", "awq/int4", "compressed/w4a16"])
def test_gpt2_is_refused(tiny: Path, to: str) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(UnsupportedError, match=r"layers of gpt2 lie transposed \(Conv1D\)"):
        bitsmith.quantize(tiny, to=to, dry_run=True)
    planned = bitsmith.quantize(tiny, to="native/int8", dry_run=True)
    assert "layers of gpt2 lie transposed (Conv1D): weights that share a scale" in " ".join(planned.warnings)


def test_weights_that_are_not_finite(tiny: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 5] = ml_dtypes.bfloat16("inf")
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    for to in ("bnb/nf4", "bnb/nf4-dq", "bnb/int8"):
        with pytest.raises(TensorError, match=rf"{name}: inf at row 3, column 5"):
            bitsmith.quantize(tiny, to=to, out=tmp_path / to.replace("/", "-"))
        assert not (tmp_path / to.replace("/", "-")).exists()


def test_zero_blocks(tiny: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = np.zeros_like(tensors[name])
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    for to in ("bnb/nf4", "bnb/fp4-dq", "bnb/int8"):
        source, _ = made(tiny, to, tmp_path / to.replace("/", "-"))
        assert not source.rows(name).any()


def test_a_quantized_folder_again(tiny: Path, tmp_path: Path) -> None:
    made(tiny, "bnb/nf4", tmp_path / "made")
    with pytest.raises(UnsupportedError, match="is already quantized"):
        bitsmith.quantize(tmp_path / "made", to="q8_0", dry_run=True)
    again = bitsmith.quantize(tmp_path / "made", to="native/int8", out=tmp_path / "again", requantize=True).out
    name = "model.layers.0.mlp.up_proj.weight"
    first, second = SafetensorsSource(tmp_path / "made").rows(name), SafetensorsSource(again).rows(name)
    assert np.abs(first - second).max() < 0.01 * np.abs(first).max()
    copied = bitsmith.convert(tmp_path / "made", to="bf16", out=tmp_path / "back").out
    assert copied.suffix == ".gguf" or copied.is_dir()
    assert bitsmith.inspect(copied, verify=True).problems == ()


def test_convert_splits_and_keeps_every_byte(tiny: Path, tmp_path: Path) -> None:
    made(tiny, "bnb/nf4-dq", tmp_path / "made")
    bitsmith.convert(tmp_path / "made", out=tmp_path / "split", max_shard_size="300KB")
    first, second = SafetensorsSource(tmp_path / "made"), SafetensorsSource(tmp_path / "split")
    assert len(second.files) > 1
    assert first.tensors.keys() == second.tensors.keys()
    assert all(np.array_equal(first.rows(name), second.rows(name)) for name in first.tensors)
