"""The decoder against itself: cached, chunked and windowed passes, and slots of any length, equal the full one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.models.arch.config import ModelConfig, Rope
from bitsmith.runtime.cache import Cache
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ondemand import OnDemandKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import load_weights
from bitsmith.system.progress import Progress
from tests.runtime.slots import run_slots, sequences
from tests.runtime.small import TINY, decoder_of, random_tensors, weight_of

PLAIN = replace(TINY, rope=Rope(dim=8))
CONFIGS: dict[str, ModelConfig] = {
    "full": PLAIN,
    "interleaved": replace(PLAIN, rope=Rope(dim=8, interleaved=True)),
    "window": replace(PLAIN, window=5),
    "window-of-one": replace(PLAIN, window=1),
    "one-layer-slides": replace(PLAIN, window=4, window_layers=(1,)),
    "qwen3": replace(PLAIN, arch="qwen3", qk_norm=True, tied=True),
    "qwen2": replace(PLAIN, arch="qwen2", qkv_bias=True),
}


def _decoder(name: str) -> Decoder:
    return decoder_of(CONFIGS[name], random_tensors(CONFIGS[name]))


def _tokens(batch: int, count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, TINY.vocab, (batch, count))


def _close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_through_the_cache_equal_the_full_pass(name: str, chunk: int) -> None:
    decoder, tokens = _decoder(name), _tokens(2, 17)
    full = decoder.forward(tokens)
    assert full.shape == (2, 17, TINY.vocab)
    cache = decoder.new_cache(20, batch=2)
    parts = [decoder.forward(tokens[:, start : start + chunk], cache) for start in range(0, 17, chunk)]
    _close(torch.cat(parts, 1), full)
    assert cache.lengths.tolist() == [17, 17]
    prefilled = decoder.prefill(tokens, decoder.new_cache(17, batch=2), chunk=chunk)
    _close(prefilled, full[:, -1])


@pytest.mark.parametrize(("name", "reach"), [("window", 4), ("window-of-one", 0)])
def test_nothing_comes_from_outside_the_window(name: str, reach: int) -> None:
    """One layer sees `window - 1` tokens back, two layers twice as far, and no further."""
    decoder, tokens = _decoder(name), _tokens(1, 16)
    changed = tokens.copy()
    changed[0, 3] = (changed[0, 3] + 1) % TINY.vocab
    moved = (decoder.forward(tokens) - decoder.forward(changed)).abs().amax(-1)[0] > 0
    assert moved.nonzero()[:, 0].tolist() == list(range(3, 3 + 2 * reach + 1))


def test_the_past_does_not_see_the_future() -> None:
    decoder, tokens = _decoder("full"), _tokens(1, 12)
    _close(decoder.forward(tokens)[:, :5], decoder.forward(tokens[:, :5]))


def test_first_leaves_logits_out() -> None:
    decoder, tokens = _decoder("full"), _tokens(2, 9)
    full = decoder.forward(tokens)
    _close(decoder.forward(tokens, first=4), full[:, 4:])
    _close(decoder.forward(tokens, first=-1), full[:, -1:])


def test_kernels_agree() -> None:
    tensors, tokens = random_tensors(PLAIN), _tokens(1, 10)
    dense, on_demand = decoder_of(PLAIN, tensors, DenseKernel()), decoder_of(PLAIN, tensors, OnDemandKernel())
    _close(dense.forward(tokens), on_demand.forward(tokens))


def test_tied_embedding_is_prepared_once() -> None:
    weights = _decoder("qwen3").weights
    assert weights.output is weights.embedding


def test_blocks_run_alone() -> None:
    """What calibration does: hidden states carried from block to block by hand."""
    decoder, tokens = _decoder("full"), _tokens(2, 8)
    x = decoder.weights.embedding.gather(torch.tensor(tokens))
    shared = decoder.place(tokens.shape[1])
    for layer, block in enumerate(decoder.weights.blocks):
        x = decoder.run_block(layer, block, x, shared)
    _close(decoder.logits(x), decoder.forward(tokens))


@pytest.mark.parametrize(
    "tokens", [np.zeros((1, 0), np.int64), np.zeros(3, np.int64), np.zeros((1, 2)), np.array([[50]]), np.array([[-1]])]
)
def test_bad_tokens(tokens: np.ndarray) -> None:
    with pytest.raises(UsageError, match="token"):
        _decoder("full").forward(tokens)


def test_cache_limits() -> None:
    decoder = _decoder("full")
    cache = decoder.new_cache(4)
    with pytest.raises(UsageError, match="4 positions cannot hold 5"):
        decoder.forward(_tokens(1, 5), cache)
    assert cache.lengths.tolist() == [0]
    with pytest.raises(UsageError, match="a cache of 1 slots got 2 rows"):
        decoder.forward(_tokens(2, 2), cache)


def test_cache_truncated_and_grown() -> None:
    decoder, tokens = _decoder("window"), _tokens(1, 12)
    cache: Cache = decoder.new_cache(8)
    decoder.forward(_tokens(1, 8) * 0, cache)
    cache.truncate(0, 0)
    decoder.forward(tokens[:, :6], cache)
    cache.truncate(0, 4)
    grown = cache.grown(12)
    _close(decoder.forward(tokens[:, 4:], grown), decoder.forward(tokens)[:, 4:])
    with pytest.raises(UsageError, match="filled to 4 cannot be cut to 9"):
        cache.truncate(0, 9)
    with pytest.raises(UsageError, match="3 positions cannot hold 4"):
        cache.grown(3)


@pytest.mark.parametrize("name", CONFIGS)
def test_slots_of_different_lengths_equal_each_sequence_alone(name: str) -> None:
    decoder = _decoder(name)
    alone = decoder.forward(sequences(TINY.vocab)).numpy()
    for sequence, position, logits in run_slots(decoder):
        np.testing.assert_allclose(logits, alone[sequence, position], atol=2e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 4, 5, 100])
def test_prefill_gives_each_rows_last_token(chunk: int) -> None:
    decoder, tokens = _decoder("one-layer-slides"), _tokens(3, 9)
    slots, counts = np.array([3, 0, 1]), np.array([5, 9, 1])
    cache = decoder.new_cache(9, batch=4)
    last = decoder.prefill(tokens, cache, slots=slots, counts=counts, chunk=chunk)
    _close(last, decoder.forward(tokens)[np.arange(3), counts - 1])
    assert cache.lengths.tolist() == [9, 1, 0, 5]
    after = decoder.prefill(tokens[:1, 5:6], cache, slots=np.array([3]))
    _close(after, decoder.forward(tokens[:1, :6])[:, -1])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"slots": np.array([0, 3])}, r"distinct and lie in 0\.\.2, found \[0, 3\]"),
        ({"slots": np.array([-1, 0])}, "distinct and lie in"),
        ({"slots": np.array([1, 1])}, "distinct and lie in"),
        ({"slots": np.array([1])}, "slots must be 2 integers, one for each row"),
        ({"slots": np.array([0.0, 1.0])}, "slots must be 2 integers"),
        ({"slots": np.array([0, 1]), "counts": np.array([0, 4])}, r"counts must lie in 1\.\.4, .* found \[0, 4\]"),
        ({"slots": np.array([0, 1]), "counts": np.array([1, 5])}, "counts must lie in"),
        ({"slots": np.array([0, 1]), "counts": np.array([[1, 2]])}, "counts must be 2 integers"),
        ({"slots": np.array([0, 2])}, "6 positions cannot hold 7"),
        ({}, "a cache of 3 slots got 2 rows"),
    ],
)
def test_bad_slots_and_counts(options: dict[str, np.ndarray], match: str) -> None:
    decoder = _decoder("full")
    cache = decoder.new_cache(6, batch=3)
    decoder.forward(_tokens(1, 3), cache, slots=np.array([2]))
    for call in (decoder.forward, decoder.prefill):
        with pytest.raises(UsageError, match=match):
            call(_tokens(2, 4), cache, **options)
    assert cache.lengths.tolist() == [0, 0, 3]


def test_slots_need_a_cache_and_caches_know_their_slots() -> None:
    decoder = _decoder("full")
    for options in ({"slots": np.array([0])}, {"counts": np.array([1])}):
        with pytest.raises(UsageError, match="need a cache"):
            decoder.forward(_tokens(1, 2), **options)
    with pytest.raises(UsageError, match=r"slots lie in 0\.\.1, found 2"):
        decoder.new_cache(4, batch=2).truncate(2, 0)


def test_loading_reports_and_refuses_layouts() -> None:
    tensors, seen = random_tensors(PLAIN), list[Progress]()
    ops = TorchOps()
    load_weights(PLAIN, lambda name: weight_of(name, tensors[name]), DenseKernel(), ops, report=seen.append)
    assert [(progress.done, progress.total) for progress in seen] == [(0, 2), (1, 2), (2, 2)]

    class Picky(DenseKernel):
        def supports(self, layout: str, device: str) -> bool:
            return layout != "f32"

    with pytest.raises(UnsupportedError, match=r"token_embd\.weight: the Picky cannot run f32"):
        load_weights(PLAIN, lambda name: weight_of(name, tensors[name]), Picky(), ops)
