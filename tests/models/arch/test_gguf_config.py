"""GGUF keys in and out: types, llama.cpp's defaults, nonsense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsmith.containers.gguf.metadata_values import Value, ValueType
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.arch.config import ModelConfig, Rope
from bitsmith.models.arch.gguf_config import config_from_gguf, config_to_gguf, rope_freqs
from bitsmith.models.arch.llamacpp import differences
from bitsmith.models.arch.tensors import ROPE_FREQS, expected_tensors
from bitsmith.quant.tensor import PackedTensor, TensorInfo
from tests.runtime.small import TINY

CONFIG = replace(TINY, rope=Rope(dim=8))
YARN = Rope(theta=5e5, dim=8, scaling="yarn", factor=4.0, original_context=16)


class _Source:
    """Tensors by name and shape; only rope_freqs.weight has values."""

    path = Path("some.gguf")
    files = (path,)
    metadata: Mapping[str, Any] = {}

    def __init__(self, config: ModelConfig, factors: np.ndarray | None = None) -> None:
        self._factors = factors
        self.tensors = {
            name: TensorInfo(name, shape, "f32", 4 * int(np.prod(shape)))
            for name, shape in expected_tensors(config).items()
        }
        if factors is not None:
            self.tensors[ROPE_FREQS] = TensorInfo(ROPE_FREQS, factors.shape, "f32", factors.nbytes)

    def packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedTensor:
        raise AssertionError("not read")

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        assert name == ROPE_FREQS
        assert self._factors is not None
        return self._factors.reshape(1, -1)

    def activations(self, name: str) -> None:
        """None."""


def _read(keys: Mapping[str, Any], config: ModelConfig = CONFIG, factors: np.ndarray | None = None) -> ModelConfig:
    return config_from_gguf(keys, _Source(config, factors))


def _keys(config: ModelConfig = CONFIG, **changes: Any) -> dict[str, Any]:
    """Plain values; a change of None removes the key. Dots in key names are written as __."""
    keys: dict[str, Any] = {key: value.plain() for key, value in config_to_gguf(config, name="x").items()}
    keys |= {"llama." + key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in keys.items() if value is not None}


def test_types_of_keys() -> None:
    keys = config_to_gguf(CONFIG, name="tiny")
    assert keys["general.architecture"] == Value(ValueType.STRING, "llama")
    assert keys["general.name"] == Value(ValueType.STRING, "tiny")
    assert keys["llama.block_count"] == Value(ValueType.UINT32, 2)
    assert keys["llama.attention.layer_norm_rms_epsilon"] == Value(ValueType.FLOAT32, float(np.float32(1e-5)))
    assert keys["llama.rope.freq_base"].type is ValueType.FLOAT32


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, tied=True, kv_heads=4),
        replace(CONFIG, arch="qwen2", qkv_bias=True),
        replace(CONFIG, arch="qwen3", qk_norm=True),
        replace(CONFIG, arch="qwen3", qk_norm=True, window=8, window_layers=(1,)),
        replace(CONFIG, window=8),
        replace(CONFIG, rope=YARN),
        replace(CONFIG, arch="qwen3", qk_norm=True, rope=replace(YARN, beta_fast=16.0)),
        replace(CONFIG, qkv_bias=True, biases=frozenset({"blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"})),
    ],
)
def test_round_trip(config: ModelConfig) -> None:
    reread = _read(config_to_gguf(config, name="x"), config)
    assert reread.rope.interleaved is (config.arch == "llama")
    assert replace(reread, norm_eps=1e-5, rope=replace(reread.rope, interleaved=False)) == config


def test_mistral_is_a_llama_with_a_window() -> None:
    mistral = replace(CONFIG, arch="mistral", window=8)
    keys = config_to_gguf(mistral, name="x")
    assert keys["general.architecture"].value == "llama"
    assert _read(keys).arch == "llama"
    assert _read(keys).window == 8


def test_frequency_factors() -> None:
    llama3 = replace(CONFIG, rope=Rope(500.0, 8, scaling="llama3", factor=8.0, original_context=64))
    factors = rope_freqs(llama3)
    assert factors is not None
    assert factors.dtype == np.float32
    assert factors.shape == (4,)
    assert (factors[0], factors[-1]) == (1.0, 8.0)
    rope = _read(_keys(llama3), llama3, factors).rope
    assert rope.freq_factors == tuple(factors.tolist())
    assert rope.scaling == "none"
    assert rope_freqs(CONFIG) is None


@pytest.mark.parametrize("factors", [np.ones(3, np.float32), np.array([1, 0, 1, 1], np.float32), np.full(4, np.nan)])
def test_damaged_frequency_factors(factors: np.ndarray) -> None:
    with pytest.raises(FileError, match=r"some\.gguf: rope_freqs\.weight"):
        _read(_keys(), factors=factors)


def test_defaults_of_llama_cpp() -> None:
    config = _read(
        _keys(
            attention__head_count_kv=None,
            attention__key_length=None,
            attention__value_length=None,
            rope__freq_base=None,
            rope__dimension_count=None,
            vocab_size=None,
        )
    )
    assert (config.kv_heads, config.head_dim, config.rope.theta, config.rope.dim, config.vocab) == (
        4,
        8,
        10000.0,
        8,
        50,
    )


def test_a_list_of_equal_numbers_a_layer_is_one_number() -> None:
    assert _read(_keys(attention__head_count_kv=np.array([2, 2], np.int32))).kv_heads == 2
    with pytest.raises(FileError, match="head_count_kv"):
        _read(_keys(attention__head_count_kv=np.array([2, 4], np.int32)))


def test_old_linear_scaling_key() -> None:
    rope = _read(_keys(rope__scale_linear=2.0)).rope
    assert (rope.scaling, rope.factor) == ("linear", 2.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"block_count": None},
        {"block_count": 10**9},
        {"attention__head_count": 0},
        {"attention__head_count": "four"},
        {"attention__head_count_kv": 3},
        {"embedding_length": -1},
        {"attention__layer_norm_rms_epsilon": None},
        {"rope__freq_base": float("inf")},
        {"rope__dimension_count": 4},
        {"attention__key_length": 7, "rope__dimension_count": 7, "attention__value_length": 7},
        {"rope__scaling__factor": -2.0},
        {"attention__sliding_window": 8, "attention__sliding_window_pattern": [True]},
    ],
)
def test_nonsense(changes: dict[str, Any]) -> None:
    with pytest.raises(FileError, match=r"^some\.gguf: llama\."):
        _read(_keys(**changes))


@pytest.mark.parametrize(
    "changes", [{"expert_shared_count": 8}, {"attention__value_length": 16}, {"rope__scaling__type": "longrope"}]
)
def test_unsupported(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"some\.gguf"):
        _read(_keys(**changes))


def test_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(UnsupportedError, match=r"'gpt2'; known are llama, mistral3, qwen2, qwen3, "):
        _read({"general.architecture": "gpt2"})
    with pytest.raises(FileError, match=r"general\.architecture is missing"):
        _read({})


def test_biases_llama_cpp_cannot_load() -> None:
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_output\.bias"):
        config_to_gguf(replace(CONFIG, arch="qwen3", qk_norm=True, qkv_bias=True, output_bias=True), name="x")


@pytest.mark.parametrize(
    ("pattern", "window", "layers"),
    [
        ([False, False], 0, ()),
        ([True, False], 8, (0,)),
        ([True, True], 8, (0, 1)),
        (np.array([0, 0], np.uint32), 0, ()),
        (np.array([1, 1], np.uint32), 8, (0, 1)),
        (2, 8, (0,)),
        (1, 0, ()),
        (0, 8, (0, 1)),
        (None, 8, ()),
    ],
)
def test_patterns_of_windows(pattern: Any, window: int, layers: tuple[int, ...]) -> None:
    config = _read(_keys(attention__sliding_window=8, attention__sliding_window_pattern=pattern))
    assert (config.window, config.window_layers) == (window, layers)


def test_no_layer_slides_in_a_file_either() -> None:
    """A pattern without any window is written and read as no window."""
    none = replace(CONFIG, arch="qwen3", qk_norm=True, window=0, window_layers=())
    assert not [key for key in config_to_gguf(none, name="x") if "sliding" in key]


def test_zeros_that_llama_cpp_takes_for_missing() -> None:
    """llama.cpp: an original context of 0 is the context; a factor of 0 is none."""
    config = replace(CONFIG, rope=YARN)
    assert _read(_keys(config, rope__scaling__original_context_length=0), config).rope.original_context == 64
    assert _read(_keys(config, rope__scaling__factor=0.0), config).rope.scaling == "none"
    assert _read(_keys(attention__layer_norm_rms_epsilon=0.0)).norm_eps == 0.0


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_rope_freqs_only_where_llama_cpp_reads_them(arch: str) -> None:
    rope = Rope(500.0, 8, scaling="llama3", factor=8.0, original_context=64)
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight, which llama\.cpp does not read"):
        config_to_gguf(replace(CONFIG, arch=arch, qk_norm=arch == "qwen3", rope=rope), name="x")


def test_more_layers_than_llama_cpp_takes() -> None:
    with pytest.raises(UnsupportedError, match="513 layers"):
        config_to_gguf(replace(CONFIG, layers=513), name="x")


def test_what_llama_cpp_does_otherwise() -> None:
    betas = replace(CONFIG, arch="qwen2", qkv_bias=True, rope=replace(YARN, beta_fast=16.0))
    assert "beta_fast 16 and beta_slow 1" in differences(betas)[0]
    assert "last 8 tokens" in differences(replace(CONFIG, window=8))[0]
    assert differences(replace(CONFIG, rope=YARN)) == ()


def test_attention_that_llama_cpp_does_not_load() -> None:
    wide = replace(CONFIG, arch="qwen2", qkv_bias=True, head_dim=16, rope=Rope(dim=16))
    with pytest.raises(UnsupportedError, match=r"4 heads of 16 are not as wide as the model \(32\)"):
        config_to_gguf(wide, name="x")
    config_to_gguf(replace(wide, arch="qwen3", qk_norm=True, qkv_bias=False), name="x")
