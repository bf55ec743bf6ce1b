"""What a text gives does not depend on what shares its steps: bit for bit, however its prompt is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitsmith.models.arch.config import Rope
from bitsmith.runtime.core_decoder import CoreDecoder
from bitsmith.runtime.types import FLOATS, PACKED
from bitsmith.system.core import core
from tests.core.test_run import CONFIG, ISAS, VARIANTS, on_core, source_of

pytestmark = pytest.mark.skipif(core() is None, reason="no C++ core")

BATCH, PROMPT, STEPS = 11, 21, 6
TOKENS = np.random.default_rng(7).integers(0, CONFIG.vocab, (BATCH, 64))
WIDE = {
    "one key for all heads": replace(CONFIG, heads=16, kv_heads=1, head_dim=16, rope=Rope(dim=16)),
    "a wide window": replace(CONFIG, window=70, window_layers=(0, 1), context=256),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("company")
    source_of.cache_clear()


def alone(decoder: CoreDecoder) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states of slot 0's text: its prompt in one step, then token by token; and logits of the steps."""
    cache, slots = decoder.new_cache(64), np.zeros(1, np.int64)
    states = [decoder.hidden(TOKENS[:1, :PROMPT], cache, slots=slots, single=0)]
    for i in range(PROMPT, PROMPT + STEPS):
        states.append(decoder.hidden(TOKENS[:1, i : i + 1], cache, slots=slots, single=1))
    logits = [decoder.logits(state[0, -1:]) for state in states[1:]]
    return np.concatenate(states, axis=1)[0], np.concatenate(logits)


def in_company(decoder: CoreDecoder) -> tuple[np.ndarray, np.ndarray]:
    """The same with prompts of others in each step, the prompt in pieces, and all tokens at once at the end."""
    cache, states = decoder.new_cache(64, batch=BATCH), []
    at = 0
    for piece in (1, 12, 8):  # answers of nobody yet: all are prompts
        counts = np.array([piece, 3])
        fed = np.zeros((2, piece + 3), np.int64)
        fed[0, :piece], fed[1, :3] = TOKENS[0, at : at + piece], TOKENS[1, at : at + 3]
        states.append(decoder.hidden(fed, cache, slots=np.array([0, 1]), counts=counts, single=0)[:1, :piece])
        at += piece
    for i in range(PROMPT, PROMPT + 3):  # beside nine other answers and a prompt
        slots = np.array([3, 4, 0, 5, 6, 7, 8, 9, 10, 2])
        counts = np.array([1] * 9 + [18])
        fed = np.zeros((10, 18), np.int64)
        fed[:9, 0], fed[9] = TOKENS[slots[:9], i], TOKENS[2, :18]
        states.append(decoder.hidden(fed, cache, slots=slots, counts=counts, single=9)[2:3, :1])
        cache.truncate(2, 0)
    rest = TOKENS[:2, PROMPT + 3 : PROMPT + STEPS]  # guesses that come true
    states.append(decoder.hidden(rest, cache, slots=np.array([0, 4]), single=2)[:1])
    found = np.concatenate(states, axis=1)[0]
    return found, decoder.logits(np.concatenate([found[PROMPT:]] * 3))[:STEPS]


def hold(decoder: CoreDecoder) -> None:
    for one, other in zip(alone(decoder), in_company(decoder), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", [*PACKED, *FLOATS])
def test_every_layout_on_every_instruction_set(layout: str, isa: str, folder: Path) -> None:
    for fine in (False, True):
        hold(on_core(CONFIG, source_of(CONFIG, layout, folder), exact=False, fine=fine, isa=isa))


@pytest.mark.parametrize("name", [name for name in [*VARIANTS, *WIDE] if name != "longrope"])  # the longest decides
def test_variants_of_the_network(name: str, folder: Path) -> None:
    config = (VARIANTS | WIDE)[name]
    source = source_of(config, "q8_0" if name == "narrow heads" else "q4_k", folder)
    for cache_type in ("f32", "f16"):
        hold(on_core(config, source, exact=False, fine=True, cache_type=cache_type))
