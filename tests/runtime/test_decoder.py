"""The decoder against itself: cached, chunked, padded and windowed passes equal the full one."""

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
    assert cache.length == 17
    prefilled = decoder.prefill(tokens, decoder.new_cache(17, batch=2), chunk=chunk)
    _close(prefilled, full[:, -1])


@pytest.mark.parametrize("name", CONFIGS)
def test_left_padding_equals_each_sequence_alone(name: str) -> None:
    decoder, tokens = _decoder(name), _tokens(3, 14)
    padding = np.array([0, 6, 13])
    padded = decoder.forward(tokens, padding=padding)
    assert torch.isfinite(padded).all()
    cache = decoder.new_cache(14, batch=3, padding=padding)
    cached = torch.cat([decoder.forward(tokens[:, :9], cache), decoder.forward(tokens[:, 9:], cache)], 1)
    for row, skipped in enumerate(padding):
        alone = decoder.forward(tokens[row : row + 1, skipped:])[0]
        _close(padded[row, skipped:], alone)
        _close(cached[row, skipped:], alone)


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
    shared = decoder.place(tokens.shape, 0)
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
    assert cache.length == 0
    with pytest.raises(UsageError, match="batch of 2"):
        decoder.forward(_tokens(2, 2), cache)
    with pytest.raises(UsageError, match="padding"):
        decoder.new_cache(4, batch=2, padding=np.array([1]))


def test_cache_truncated_and_grown() -> None:
    decoder, tokens = _decoder("window"), _tokens(1, 12)
    cache: Cache = decoder.new_cache(8)
    decoder.forward(_tokens(1, 8) * 0, cache)
    cache.truncate(0)
    decoder.forward(tokens[:, :6], cache)
    cache.truncate(4)
    grown = cache.grown(12)
    _close(decoder.forward(tokens[:, 4:], grown), decoder.forward(tokens)[:, 4:])
    with pytest.raises(UsageError, match="cannot be cut"):
        cache.truncate(9)


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
