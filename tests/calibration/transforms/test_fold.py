"""Folding leaves what a block computes as it was, or is refused with a reason."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from bitsmith.calibration.transforms.base import settled
from bitsmith.calibration.transforms.fold import fold, producer_rows, refusal, rescaled_stats, storable
from bitsmith.errors import TensorError, UsageError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.groups import LinearGroup, linear_groups
from tests.calibration.transforms.samples import CONFIGS, LLAMA, block_tensors, outlying, stats_of
from tests.runtime.small import decoder_of, random_tensors

TOKENS = np.random.default_rng(0).integers(0, 50, (2, 12))


def factors(group: LinearGroup, config: ModelConfig, cols: int, seed: int) -> np.ndarray:
    """Random factors from about 1/8 to 8, tied where they must be."""
    wild = np.exp(np.random.default_rng(seed).uniform(-2, 2, cols))
    return settled(wild, np.ones(cols, bool), producer_rows(group, config, cols))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_all_groups_folded_leave_the_hidden_states_unchanged(config: ModelConfig) -> None:
    tensors = random_tensors(config)
    biases = {name for name in tensors if name.endswith(".bias")}
    before = decoder_of(config, tensors).hidden(TOKENS).numpy()
    folded = block_tensors(config, tensors)
    for seed, group in enumerate(linear_groups(config)):
        cols = folded[f"{group.linears[0]}.weight"].shape[1]
        assert refusal(group, config, folded) is None
        folded |= fold(group, factors(group, config, cols, seed), folded, config)
    changed = {**tensors, **{f"blk.0.{name}": values for name, values in folded.items()}}
    after = decoder_of(config, changed).hidden(TOKENS).numpy()
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    assert all(not np.allclose(changed[name], tensors[name]) for name in biases if "attn_v" in name)
    assert not np.allclose(changed["blk.0.ffn_down.weight"], tensors["blk.0.ffn_down.weight"])


def test_a_bias_left_alone_would_be_noticed() -> None:
    config = CONFIGS["qwen2"]
    tensors = random_tensors(config)
    group = linear_groups(config)[1]
    own = block_tensors(config, tensors)
    folded = fold(group, factors(group, config, 32, 0), own, config)
    assert set(folded) == {"attn_output.weight", "attn_v.weight", "attn_v.bias"}
    without = {**tensors, **{f"blk.0.{name}": values for name, values in folded.items() if name != "attn_v.bias"}}
    before = decoder_of(config, tensors).hidden(TOKENS).numpy()
    assert np.abs(decoder_of(config, without).hidden(TOKENS).numpy() - before).max() > 1e-3


def test_heads_that_share_a_value_head_need_one_factor() -> None:
    group = linear_groups(LLAMA)[1]
    own = block_tensors(LLAMA, random_tensors(LLAMA))
    assert producer_rows(group, LLAMA, 32).reshape(4, 8)[:, 0].tolist() == [0, 0, 8, 8]
    untied = np.linspace(0.5, 2.0, 32, dtype=np.float32)
    with pytest.raises(UsageError, match="one factor"):
        fold(group, untied, own, LLAMA)


def test_inputs_are_not_touched() -> None:
    own = block_tensors(LLAMA, random_tensors(LLAMA))
    kept = {name: values.copy() for name, values in own.items()}
    group = linear_groups(LLAMA)[0]
    fold(group, factors(group, LLAMA, 32, 0), own, LLAMA)
    assert all(np.array_equal(own[name], kept[name]) for name in own)


def test_refusals_say_why() -> None:
    own = block_tensors(LLAMA, random_tensors(LLAMA))
    attention, mix, _, _ = linear_groups(LLAMA)
    assert "nothing" in str(refusal(replace(attention, producer=None), LLAMA, own))
    assert "no attn_norm.weight" in str(
        refusal(attention, LLAMA, {k: v for k, v in own.items() if k != "attn_norm.weight"})
    )
    router = {**own, "ffn_gate_inp.weight": np.zeros((4, 32), np.float32)}
    assert "ffn_gate_inp" in str(refusal(linear_groups(LLAMA)[2], LLAMA, router))
    assert "attn_v" in str(refusal(replace(attention, linears=("attn_q", "attn_k")), LLAMA, own))
    assert "16 rows" in str(refusal(replace(mix, repeats=3), LLAMA, own))
    strange = {**own, "odd_norm.weight": own["attn_norm.weight"]}
    assert "not known" in str(refusal(replace(attention, producer="odd_norm"), LLAMA, strange))


@pytest.mark.parametrize("tied", [False, True])
def test_the_final_norm_takes_a_scale_only_where_the_output_is_its_own(tied: bool) -> None:
    config = replace(LLAMA, tied=tied)
    group = LinearGroup("output_in", ("output",), "output_norm")
    tensors = {"output.weight": np.ones((5, 32), np.float32), "output_norm.weight": np.ones(32, np.float32)}
    assert (refusal(group, config, tensors) is None) is not tied


def test_factors_must_be_finite_positive_and_as_many_as_columns() -> None:
    own = block_tensors(LLAMA, random_tensors(LLAMA))
    group = linear_groups(LLAMA)[0]
    for bad in (0.0, -1.0, np.inf, np.nan):
        scale = np.ones(32, np.float32)
        scale[3] = bad
        with pytest.raises(TensorError, match="finite and positive"):
            fold(group, scale, own, LLAMA)
    with pytest.raises(UsageError, match="32 columns"):
        fold(group, np.ones(31, np.float32), own, LLAMA)
    with pytest.raises(UsageError, match="cannot be folded"):
        fold(replace(group, producer=None), np.ones(32, np.float32), own, LLAMA)


def test_rescaled_statistics_are_those_of_the_rescaled_input() -> None:
    x = outlying(50, 16)
    scale = np.exp(np.random.default_rng(3).standard_normal(16)).astype(np.float32)
    got, wanted = rescaled_stats(stats_of(x), scale), stats_of(x / scale)
    np.testing.assert_allclose(got.square, wanted.square, rtol=1e-5)
    np.testing.assert_allclose(got.mean_abs, wanted.mean_abs, rtol=1e-5)
    np.testing.assert_allclose(got.max_abs, wanted.max_abs, rtol=1e-5)
    assert got.gram is not None
    assert wanted.gram is not None
    np.testing.assert_allclose(got.gram, wanted.gram, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got.sample, wanted.sample)


def test_storable_factors_make_the_divided_norm_exact() -> None:
    rng = np.random.default_rng(4)
    norm = rng.standard_normal(64).astype(ml_dtypes.bfloat16).astype(np.float32)
    norm[5] = 0.0
    wanted = np.exp(rng.uniform(-2, 2, 64)).astype(np.float32)
    scale = storable(wanted, norm, np.dtype(ml_dtypes.bfloat16))
    divided = norm / scale
    stored = divided.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_allclose(divided, stored, rtol=1e-6)
    np.testing.assert_allclose(np.delete(scale, 5), np.delete(wanted, 5), rtol=2.0**-8)
    assert scale[5] == 1.0
