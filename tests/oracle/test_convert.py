"""What `convert` writes, read by transformers, the gguf package and llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import bitsmith
from tests.oracle import llama
from tests.tiny import make_folder

TEXT = "Once upon a time there was a model"


@pytest.mark.parametrize("to", ["q8_0", "q4_k_m", "gptq/int4", "native/nf4"])
def test_transformers_loads_the_folder_and_gives_the_same_logits(tmp_path: Path, to: str) -> None:
    tiny = make_folder(tmp_path / "tiny")
    suffix = "" if "/" in to else ".gguf"
    packed = bitsmith.quantize(tiny, to=to, out=tmp_path / f"packed{suffix}").out
    folder = bitsmith.convert(packed, to="f32", out=tmp_path / "floats").out
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    tokens = np.array([tokenizer(TEXT).input_ids])
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    ours = bitsmith.load(packed, kernel="exact").logits(tokens)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3 * np.abs(theirs).max())
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


@pytest.mark.parametrize(("to", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_transformers_takes_the_type_of_the_folder(tiny: Path, tmp_path: Path, to: str, dtype: torch.dtype) -> None:
    packed = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "m.gguf").out
    folder = bitsmith.convert(packed, to=to, out=tmp_path / "floats").out
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype is dtype
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def test_llama_cpp_reads_split_and_merged_files(tiny: Path, tmp_path: Path) -> None:
    packed = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "m.gguf").out
    split = bitsmith.convert(packed, max_shard_size="500kB", out=tmp_path / "s.gguf")
    merged = bitsmith.convert(split.out, out=tmp_path / "merged.gguf")
    assert len(split.paths) > 1
    expected, *found = (_logits(path) for path in (packed, split.out, merged.out))
    for each in found:
        np.testing.assert_array_equal(each, expected)


def _logits(path: Path) -> np.ndarray:
    model = llama.load(path)
    logits = model.logits([1, 5, 9, 200])
    model.close()
    return logits


def test_the_gguf_package_reads_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    packed = bitsmith.quantize(tiny, to="q4_k_m", out=tmp_path / "m.gguf").out
    split = bitsmith.convert(packed, max_shard_size="400kB", out=tmp_path / "s.gguf")
    theirs = {t.name: t for path in split.paths for t in gguf.GGUFReader(path).tensors}
    original = gguf.GGUFReader(packed).tensors
    assert [t.name for t in original] == list(theirs)
    for tensor in original:
        assert theirs[tensor.name].tensor_type == tensor.tensor_type
        assert np.array_equal(theirs[tensor.name].data, tensor.data)
