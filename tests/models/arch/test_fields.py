"""Fields of config.json and keys of GGUF that bitsmith does not read: refused by name, or noted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitsmith.errors import BitsmithError, UnsupportedError
from bitsmith.models.arch.hf_config import config_from_hf
from bitsmith.models.arch.hf_fields import check_fields
from bitsmith.models.arch.llamacpp import IGNORED, READ, check_keys
from bitsmith.models.checkpoint import open_checkpoint
from tests.models.arch.test_gguf_config import CONFIG as KEYS_CONFIG
from tests.models.arch.test_gguf_config import YARN, _keys, _read
from tests.models.arch.test_hf_config import LLAMA, PUBLISHED
from tests.tiny import make_folder

CHANGING: list[dict[str, Any]] = [
    {"logit_softcapping": 30.0},
    {"final_logit_softcapping": 30},
    {"query_pre_attn_scalar": 64},
    {"attention_multiplier": 0.1},
    {"logit_scale": 0.0625},
    {"partial_rotary_factor": 0.5},
    {"partial_rotary_factor": 0},
    {"sliding_window": 512},
    {"layer_types": ["sliding_attention"] * 3},
    {"hidden_activation": "gelu"},
    {"num_local_experts": 8},
    {"rope_interleaved": True},
    {"use_rope": False},
    {"attention_chunk_size": 128},
    {"position_embedding_type": "alibi"},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mrope_section": [1, 2, 3]}},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "llama_4_scaling_beta": 0.1}},
]


@pytest.mark.parametrize("fields", CHANGING)
def test_fields_that_change_the_computation_are_refused_by_name(fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    with pytest.raises(BitsmithError, match=name):
        config_from_hf(LLAMA | {"max_position_embeddings": 2048} | fields)


@pytest.mark.parametrize(
    "fields",
    [
        *({name: value} for name in ("logit_softcapping", "sliding_window") for value in (None, 0, 0.0, False, "", [])),
        {"logit_scale": 1.0},
        {"activation": "swiglu"},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"layer_types": ["full_attention"] * 3},
        {"rope_interleaved": False},
        {"num_local_experts": 1},
        {"pretraining_tp": 2, "use_cache": False, "attention_dropout": 0.1, "torch_dtype": "float16"},
    ],
)
def test_fields_without_effect_are_taken_in_silence(fields: dict[str, Any]) -> None:
    assert config_from_hf(LLAMA | fields) == config_from_hf(LLAMA)
    assert check_fields(LLAMA | fields, "llama", "config.json") == ()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_give_no_note(name: str) -> None:
    values, _ = PUBLISHED[name]
    assert check_fields(values, config_from_hf(values).arch, "config.json") == ()


def test_unknown_fields_are_noted_by_name(tmp_path: Path) -> None:
    notes = open_checkpoint(make_folder(tmp_path / "m", frobnicate=3, other_thing={"a": 1}, nothing=None)).notes
    assert len(notes) == 1
    assert "frobnicate, other_thing" in notes[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_scale": 0.5},
        {"attention__scale": 0.1},
        {"final_logit_softcapping": 30.0},
        {"attention__causal": False},
        {"rope__scaling__yarn_log_multiplier": 0.1},
        {"rope__dimension_sections": [1, 2, 3, 0]},
        {"rope__freq_base_swa": 1e4},
        {"nextn_predict_layers": 1},
    ],
)
def test_keys_that_change_the_computation_are_refused_by_name(changes: dict[str, Any]) -> None:
    name = next(iter(changes)).replace("__", ".")
    with pytest.raises(UnsupportedError, match=rf"some\.gguf: llama\.{name}"):
        _read(_keys(**changes))


def test_keys_without_effect_and_unknown_keys() -> None:
    assert _read(_keys(logit_scale=1.0, attention__causal=True, attention__scale=0.0)) == _read(_keys())
    assert check_keys({"llama.frobnicate": 3, "llama.logit_scale": 1.0}, "llama", "x") == (
        "keys that bitsmith does not know, and ignores: llama.frobnicate",
    )


def test_llama_cpp_reads_what_we_write() -> None:
    """Each key is in the table of what llama.cpp reads, or in that of what it ignores, with the effect."""
    configs = [
        replace(KEYS_CONFIG, arch="qwen3", qk_norm=True, window=8, window_layers=(1,), rope=replace(YARN, beta_fast=9)),
        replace(KEYS_CONFIG, rope=replace(YARN, attention_factor=0.8)),
    ]
    for config in configs:
        names = {key.partition(".")[2] for key in _keys(config) if not key.startswith("general.")}
        assert names <= READ | set(IGNORED)
