"""Tensor names and the order of the rows of q and k."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitsmith.models.arch.names import gguf_name, hf_name, is_permuted, permute_rows, skipped, unpermute_rows
from bitsmith.models.arch.tensors import expected_tensors
from tests.runtime.small import TINY

FULL = replace(TINY, layers=12, qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True)


@pytest.mark.parametrize("name", expected_tensors(FULL))
def test_every_expected_name_maps_there_and_back(name: str) -> None:
    theirs = hf_name(name)
    assert theirs is not None
    assert gguf_name(theirs) == name


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.11.self_attn.q_proj.bias", "blk.11.attn_q.bias"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("model.layers.3.self_attn.k_norm.weight", "blk.3.attn_k_norm.weight"),
        ("model.layers.3.mlp.down_proj.weight", "blk.3.ffn_down.weight"),
    ],
)
def test_names(theirs: str, ours: str) -> None:
    assert gguf_name(theirs) == ours


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.01.mlp.up_proj.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.0.mlp.up_proj.weight_scale",
        "transformer.wte.weight",
        "weight",
        "",
    ],
)
def test_names_without_a_place(name: str) -> None:
    assert gguf_name(name) is None


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.ffn_gate_exps.weight", "blk.x.attn_q.weight"])
def test_gguf_names_without_a_place(name: str) -> None:
    assert hf_name(name) is None


def test_skipped() -> None:
    assert skipped("model.layers.7.self_attn.rotary_emb.inv_freq", tied=False)
    assert skipped("lm_head.weight", tied=True)
    assert not skipped("lm_head.weight", tied=False)
    assert not skipped("model.norm.weight", tied=True)


def test_is_permuted() -> None:
    assert is_permuted("blk.10.attn_q.weight")
    assert is_permuted("blk.0.attn_k.bias")
    assert not any(is_permuted(name) for name in ("blk.0.attn_v.weight", "blk.0.attn_q_norm.weight", "output.weight"))


def test_permuted_rows_are_pairs() -> None:
    rows = np.arange(16)[:, None]
    assert permute_rows(rows, 2)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    bias = np.arange(16)
    assert permute_rows(bias, 2).tolist() == permute_rows(rows, 2)[:, 0].tolist()


@pytest.mark.parametrize("shape", [(24, 5), (24,)])
def test_unpermuting_is_the_inverse_and_heads_do_not_mix(shape: tuple[int, ...]) -> None:
    w = np.random.default_rng(0).standard_normal(shape)
    permuted = permute_rows(w, 3)
    np.testing.assert_array_equal(unpermute_rows(permuted, 3), w)
    slabs = [permute_rows(w[8 * head : 8 * head + 8], 1) for head in range(3)]
    np.testing.assert_array_equal(np.concatenate(slabs), permuted)
