"""What llama.cpp requires of a file: types of norms and biases, an end token, whole blocks of a quantized cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bitsmith.containers.gguf.metadata_values import string, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.gguf.types import TYPES
from bitsmith.models.arch.config import Rope
from bitsmith.models.arch.gguf_config import config_to_gguf
from bitsmith.models.arch.llamacpp import end_warnings
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.models.tokenizer.to_gguf import vocabulary_keys
from bitsmith.models.tokenizer.vocabulary import Vocabulary
from bitsmith.pipeline.quantization import quantize
from bitsmith.planner.report import plan
from tests.gguf_files import write_gguf
from tests.models.tokenizer.folders import plain, write_vocabulary
from tests.oracle import llama
from tests.runtime.small import TINY, random_tensors
from tests.tiny import CONFIG, make_folder, weights

SMALL = replace(TINY, hidden=64, intermediate=96, vocab=96, qkv_bias=True, rope=Rope(dim=8))
HALF = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f64": np.float64}


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("to", ["f16", "q8_0"])
def test_norms_and_biases_become_f32(tmp_path: Path, kind: str, to: str) -> None:
    tensors = {name: values.astype(HALF[kind]) for name, values in random_tensors(SMALL).items()}
    keys = config_to_gguf(SMALL, name="x") | {"tokenizer.ggml.model": string("no_vocab")}
    write_gguf(tmp_path / "half.gguf", keys, tensors)
    result = quantize(tmp_path / "half.gguf", to=to, out=tmp_path / "out.gguf")
    with GgufSource(tmp_path / "out.gguf") as source:
        written = {name: info.layout for name, info in source.tensors.items()}
    assert written == {tensor.info.name: tensor.info.layout for tensor in result.plan.tensors}
    assert {layout for name, layout in written.items() if "norm" in name or "bias" in name} == {"f32"}
    oracle = llama.load(tmp_path / "out.gguf")
    assert np.isfinite(oracle.logits(np.arange(20))).all()
    oracle.close()


@pytest.mark.parametrize("kind", HALF)
def test_folders_of_any_float_load(tmp_path: Path, kind: str) -> None:
    tensors = {name: values.astype(np.float32).astype(HALF[kind]) for name, values in weights(CONFIG).items()}
    folder = make_folder(tmp_path / "m", tensors=tensors)
    result = quantize(folder, to="f16", out=tmp_path / "m.gguf")
    assert any("float64" in warning for warning in result.warnings) is (kind == "f64")
    oracle = llama.load(tmp_path / "m.gguf")
    assert np.isfinite(oracle.logits(np.arange(20))).all()
    oracle.close()


def _vocabulary(**changes: Any) -> Vocabulary:
    """Twenty letters. Token 11 is "l"; the last is padding of the embedding."""
    tokens = tuple("abcdefghijklmnopqrst")
    usual = Vocabulary("gpt2", (*tokens, "[PAD20]"), (1,) * 20 + (5,), merges=("a b",), pre="qwen2")
    return replace(usual, **changes)


@pytest.mark.parametrize(
    ("vocabulary", "ends"),
    [
        (_vocabulary(), {20}),
        (_vocabulary(end_ids=frozenset({7}), types=(1,) * 7 + (3,) + (1,) * 12 + (5,)), {7}),
        (
            _vocabulary(
                tokens=(*"abcdefghijklmnopqrs", "<|im_end|>", "[PAD20]"), types=(1,) * 19 + (3, 5), end_ids={19}
            ),
            {19},
        ),
        (_vocabulary(special={"eos": 3}, end_ids=frozenset({3})), {3}),
    ],
)
def test_llama_cpp_ends_where_the_original_does(tmp_path: Path, vocabulary: Vocabulary, ends: set[int]) -> None:
    keys = vocabulary_keys(vocabulary)
    assert end_warnings(plain(keys)) == ()
    oracle = llama.load(write_vocabulary(tmp_path / "vocab.gguf", keys), vocab_only=True)
    assert oracle.end_ids == ends
    oracle.close()


def test_without_any_substitute_there_is_a_warning(tmp_path: Path) -> None:
    keys = vocabulary_keys(_vocabulary(tokens=tuple("abcdefghijklmnopqrstu"), types=(1,) * 21))
    assert "token 11 ('l')" in end_warnings(plain(keys))[0]
    oracle = llama.load(write_vocabulary(tmp_path / "vocab.gguf", keys), vocab_only=True)
    assert oracle.end_ids == {11}
    oracle.close()
    beyond = keys | {"tokenizer.ggml.eos_token_id": u32(500)}
    assert end_warnings(plain(beyond))


def test_a_source_without_end_token_is_warned_of(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    quantize(folder, to="f16", out=tmp_path / "m.gguf")
    with GgufSource(tmp_path / "m.gguf") as source:
        keys = {key: value for key, value in source.keys.items() if key != "tokenizer.ggml.eos_token_id"}
        tensors = {name: source.rows(name).reshape(info.shape) for name, info in source.tensors.items()}
    write_gguf(tmp_path / "without.gguf", keys, tensors)
    result = quantize(tmp_path / "without.gguf", to="q8_0", out=tmp_path / "out.gguf")
    assert any("names no end token" in warning for warning in result.warnings)
    assert not any("end token" in warning for warning in open_checkpoint(tmp_path / "m.gguf").notes)


@pytest.mark.parametrize("kv", ["q8_0", "q4_0", "f16"])
@pytest.mark.parametrize("head", [80, 64])
def test_a_quantized_cache_needs_whole_blocks(tmp_path: Path, head: int, kv: str) -> None:
    """The plan says what llama.cpp does."""
    folder = make_folder(tmp_path / "m", hidden_size=4 * head, num_key_value_heads=4)
    quantize(folder, to="q8_0", out=tmp_path / "m.gguf")
    oracle = llama.load(tmp_path / "m.gguf")
    opens = oracle.opens(type_k=TYPES[kv].number, type_v=TYPES[kv].number)
    oracle.close()
    report = plan(tmp_path / "m.gguf", memory="8GB", kv=kv, runtime="llama.cpp")
    assert opens is (report.rows[0].verdicts[0].kind == "fits")
