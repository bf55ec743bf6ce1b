"""Models with gated delta nets at work: slots, filler, prompts in chunks, states that cannot go back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitsmith.errors import UsageError
from bitsmith.models.arch.config import DeltaNet, Rope
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.torch.delta import delta_rule
from tests.runtime.slots import sequences
from tests.runtime.small import TINY, decoder_of, random_tensors

NET = DeltaNet(2, 4, 8, 6, 4, (0, 1, 2))
CONFIG = replace(
    TINY, arch="qwen3_5_text", layers=4, rope=Rope(dim=4), qk_norm=True, delta=NET, context=512, norm_eps=1e-6
)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    tensors = random_tensors(CONFIG)
    for name in tensors:
        if name.endswith("ssm_a"):
            tensors[name] = -np.abs(tensors[name])
    return decoder_of(CONFIG, tensors)


def test_slots_and_filler_give_what_sequences_alone_give(decoder: Decoder) -> None:
    """Steps of rows of different lengths, slots out of order, one emptied for another sequence."""
    texts = sequences(CONFIG.vocab)
    alone = decoder.forward(texts).numpy()
    cache = decoder.new_cache(40, batch=3)
    held = {0: 0, 1: 1, 2: 2}

    def feed(rows: dict[int, int]) -> None:
        slots, counts = np.array(list(rows)), np.array(list(rows.values()))
        starts = cache.lengths[slots].copy()
        tokens = np.full((len(rows), counts.max()), 1)
        for row, slot in enumerate(slots):
            tokens[row, : counts[row]] = texts[held[slot], starts[row] : starts[row] + counts[row]]
        logits = decoder.forward(tokens, cache, slots=slots, counts=counts).numpy()
        for row, slot in enumerate(slots):
            expected = alone[held[slot], starts[row] : starts[row] + counts[row]]
            np.testing.assert_allclose(logits[row, : counts[row]], expected, rtol=0, atol=2e-4)

    feed({0: 12, 1: 1, 2: 7})
    feed({0: 1, 1: 1, 2: 1})
    feed({2: 3, 0: 1})
    cache.truncate(0, 0)
    held[0] = 3
    cache = cache.grown(45)
    feed({1: 1, 0: 20, 2: 2})
    feed({0: 1})
    feed({0: 19, 1: 30})


def test_a_state_cannot_go_back(decoder: Decoder) -> None:
    cache = decoder.new_cache(20)
    decoder.forward(sequences(CONFIG.vocab)[:1, :9], cache)
    assert [cache.reusable(0, length) for length in (9, 8, 0)] == [9, 0, 0]
    cache.truncate(0, 9)
    with pytest.raises(UsageError, match="cannot be cut to 8: the model has layers with a state"):
        cache.truncate(0, 8)


def test_a_step_that_is_stopped_leaves_an_empty_slot(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sequences(CONFIG.vocab)
    cache = decoder.new_cache(40)
    decoder.forward(texts[:1, :9], cache)
    whole, layers = Decoder.run_block, list[int]()

    def stopping(self: Decoder, layer: int, *rest: object) -> object:
        layers.append(layer)
        if layer == 2:
            raise KeyboardInterrupt
        return whole(self, layer, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Decoder, "run_block", stopping)
        decoder.forward(texts[:1, 9:12], cache)
    assert layers == [0, 1, 2]
    assert cache.lengths.tolist() == [0]
    again = decoder.forward(texts[:1], cache).numpy()
    np.testing.assert_allclose(again, decoder.forward(texts[:1]).numpy(), rtol=0, atol=2e-4)


def test_long_prompts_are_computed_in_chunks_as_token_by_token() -> None:
    """150 tokens: two whole chunks and a part; with a state before them."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(random(2, 150, 3, 8), dim=-1) for _ in range(2))
    v, decay, rate = random(2, 150, 3, 5), -random(2, 150, 3).exp(), random(2, 150, 3).sigmoid()
    first = random(2, 3, 8, 5)
    state, parts = first, []
    for token in range(150):
        at = slice(token, token + 1)
        out, state = delta_rule(q[:, at], k[:, at], v[:, at], decay[:, at], rate[:, at], state)
        parts.append(out)
    whole, last = delta_rule(q, k, v, decay, rate, first)
    torch.testing.assert_close(whole, torch.cat(parts, dim=1), rtol=0, atol=1e-10)
    torch.testing.assert_close(last, state, rtol=0, atol=1e-10)
    # by the formula itself, for the first token of the first head
    kept = first[0, 0] * decay[0, 0, 0].exp()
    seen = kept + torch.outer(k[0, 0, 0], rate[0, 0, 0] * (v[0, 0, 0] - kept.T @ k[0, 0, 0]))
    torch.testing.assert_close(whole[0, 0, 0], seen.T @ q[0, 0, 0])
