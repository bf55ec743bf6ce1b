"""Calibration of families beside Llama: blocks are walked by operations, norms folded, experts counted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import bitsmith
from bitsmith.calibration.collect import RecordedLinear, collect
from bitsmith.calibration.sources import CalibrationTokens
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.recipe.coverage import STARVED
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.torch.model import load_torch_model
from tests.families import folder_of, wrapper_of

pytest.importorskip("transformers")
FEW = {"calibration": "default", "calibration_tokens": 2048, "calibration_context": 64, "device": "cpu"}


def logits(path: Path, tokens: np.ndarray) -> torch.Tensor:
    found: torch.Tensor = load_torch_model(open_checkpoint(path), dense=True).decoder.forward(tokens)
    return found.double().log_softmax(-1)


def kld(path: Path, original: Path) -> float:
    """On tokens as the calibration sees them: frequent ones of the built-in text."""
    tokens = np.array(
        [open_checkpoint(original).tokenizer().encode("It was a night like any other. " * 12, add_special=False)]
    )
    ours, theirs = logits(path, tokens), logits(original, tokens)
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


GGUF = ["gemma2", "gemma4", "gemma4-large", "gemma4_moe", "olmo2", "phi-mini", "glm4", "seed_oss", "qwen3_moe"]
GGUF += ["mixtral", "gpt_oss", "qwen3_5", "qwen3_next"]


@pytest.mark.parametrize("name", GGUF)
def test_gguf_files(name: str, tmp_path: Path) -> None:
    """Rescaled and rounded to 8 bits: hardly a loss, so that every factor was folded where it belongs."""
    folder, _ = folder_of(name, tmp_path / name)
    made = bitsmith.quantize(folder, to="q8_0", method="awq+gptq", out=tmp_path / "a.gguf", **FEW)
    assert any("rescaled" in note for note in made.notes)
    limit = 0.05 if open_checkpoint(folder).config.experts else 0.01  # a router of random weights turns on little
    assert 0 < kld(made.out, folder) < limit
    learned = bitsmith.quantize(folder, to="q8_0", method="learned", effort="fast", out=tmp_path / "b.gguf", **FEW)
    assert 0 < kld(learned.out, folder) < limit


@pytest.mark.parametrize("name", ["gemma3", "gemma4", "gemma4_moe", "phi-mini", "qwen3_moe", "qwen3_5", "qwen3_next"])
def test_folders(name: str, tmp_path: Path) -> None:
    """The same for folders, whose norms lack their 1, whose matrices are fused, or whose experts lie apart."""
    folder, _ = folder_of(name, tmp_path / name)
    made = bitsmith.quantize(folder, to="gptq/int8", method="awq+gptq", out=tmp_path / "made", **FEW)
    assert any("inputs rescaled" in note for note in made.notes)
    limit = 0.05 if open_checkpoint(folder).config.experts else 0.02  # as above
    assert 0 < kld(made.out, folder) < limit
    again = bitsmith.quantize(made.out, to="q8_0", requantize=True, out=tmp_path / "again.gguf")
    assert 0 < kld(again.out, folder) < limit


@pytest.mark.parametrize("memory", [None, 1000])
def test_blocks_read_what_earlier_ones_left(tmp_path: Path, memory: int | None) -> None:
    """Block by block, keys of earlier layers and embeddings of layers are those of a whole pass; on disk, too."""
    folder, _ = folder_of("gemma4", tmp_path / "m")
    checkpoint = open_checkpoint(folder)
    tokens = np.random.default_rng(0).integers(4, 4096, (3, 20))
    found = collect(checkpoint, CalibrationTokens("random", tokens, 0), memory=memory).stats
    decoder = load_torch_model(checkpoint, dense=True).decoder
    assert isinstance(decoder, Decoder)
    seen: dict[str, torch.Tensor] = {}
    blocks = []
    for layer, block in enumerate(decoder.weights.blocks):
        names = [name for name in block.linears if name in ("attn_output", "proj")]
        watched = {
            name: RecordedLinear.watching(block.linears[name], partial(seen.__setitem__, f"blk.{layer}.{name}"))
            for name in names
        }
        blocks.append(block.with_linears(watched))
    Decoder(checkpoint.config, replace(decoder.weights, blocks=tuple(blocks)), decoder.ops).forward(tokens)
    assert len(seen) == 12
    for name, x in seen.items():
        square = x.reshape(-1, x.shape[-1]).square().sum(0)
        np.testing.assert_allclose(found[name].square, square, rtol=1e-4, err_msg=name)


def test_experts_gain_by_gptq_and_their_tokens_are_told(tmp_path: Path) -> None:
    folder, _ = folder_of("qwen3_moe", tmp_path / "moe")
    nearest = bitsmith.quantize(folder, to="native/int4", out=tmp_path / "nearest")
    gptq = bitsmith.quantize(folder, to="native/int4", method="gptq", out=tmp_path / "gptq", **FEW)
    told = next(note for note in gptq.notes if "expert" in note)
    assert "tokens of the calibration text that an expert saw" in told
    assert kld(gptq.out, folder) < kld(nearest.out, folder)


def test_a_text_that_starves_experts_is_refused(tmp_path: Path) -> None:
    folder, _ = folder_of("mixtral", tmp_path / "moe")
    few = FEW | {"calibration_tokens": STARVED, "calibration_context": STARVED}
    with pytest.raises(UsageError, match=r"too few experts: 4 of the first 4 experts .* Give about \S+=\d+"):
        bitsmith.quantize(folder, to="q4_0", method="gptq", out=tmp_path / "a.gguf", **few)
    assert not (tmp_path / "a.gguf").exists()


def test_mxfp4_stacks_are_read_and_kept(tmp_path: Path) -> None:
    """gpt-oss as it is published: the same values as transformers decodes, MXFP4 in the GGUF file."""
    from safetensors.numpy import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder, _ = folder_of("gpt_oss", tmp_path / "oss")
    tensors = load_file(folder / "model.safetensors")
    packed, rng = dict(tensors), np.random.default_rng(2)
    for name, values in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")) and "experts" in name:
            matrices, cols, rows = packed.pop(name).shape
            blocks = rng.integers(0, 256, (matrices, rows, cols // 32, 16), dtype=np.uint8)
            scales = rng.integers(122, 125, (matrices, rows, cols // 32), dtype=np.uint8)
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            decoded = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32)
            assert decoded.shape == values.shape
            tensors[name] = decoded.numpy()
    save_file(tensors, folder / "model.safetensors")
    plain = bitsmith.convert(folder, to="gguf/f32", out=tmp_path / "plain.gguf").out
    save_file(packed, folder / "model.safetensors")
    read = bitsmith.convert(folder, to="gguf/f32", out=tmp_path / "read.gguf").out
    kept = bitsmith.quantize(folder, to="q8_0", out=tmp_path / "kept.gguf").out
    original, stored = open_checkpoint(plain).source, open_checkpoint(read).source
    small = open_checkpoint(kept).source
    for name, info in original.tensors.items():
        np.testing.assert_array_equal(stored.rows(name), original.rows(name), err_msg=name)
        if "_exps.weight" in name:
            assert small.tensors[name].layout == "mxfp4"
            np.testing.assert_array_equal(small.rows(name), original.rows(name), err_msg=info.name)
    with pytest.raises(UnsupportedError, match="MXFP4, and transformers would expect it transposed"):
        bitsmith.quantize(folder, to="native/int8", out=tmp_path / "native")


def test_a_stack_of_floats_takes_the_factors_of_its_experts(tmp_path: Path) -> None:
    """Some experts' factors go into a stack that is not quantized, and is written whole."""
    folder, _ = folder_of("qwen3_moe", tmp_path / "moe")
    made = bitsmith.quantize(
        folder, to="q8_0", method="awq+gptq", rules=["ffn_up_exps=f16"], out=tmp_path / "a.gguf", **FEW
    )
    source = open_checkpoint(made.out).source
    assert source.tensors["blk.0.ffn_up_exps.weight"].layout == "f16"
    assert 0 < kld(made.out, folder) < 0.05


def test_experts_in_transposed_stacks(tmp_path: Path) -> None:
    """Qwen3-VL-MoE as it is published, calibrated into a file, and into a folder with experts one by one."""
    folder, _ = wrapper_of("qwen3_vl_moe", tmp_path / "m")
    few = FEW | {"calibration_tokens": 1024}
    made = bitsmith.quantize(folder, to="q8_0", method="awq+gptq", out=tmp_path / "a.gguf", **few)
    assert made.coverage is not None
    assert made.coverage.summary["experts"] == 16
    assert 0 < kld(made.out, folder) < 0.05
    apart = bitsmith.quantize(folder, to="gptq/int8", method="gptq", out=tmp_path / "made", **few).out
    assert "model.language_model.layers.0.mlp.experts.3.up_proj.weight" in open_checkpoint(apart).source.tensors
    assert 0 < kld(apart, folder) < 0.05
