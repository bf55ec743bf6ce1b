"""The same prompts to every model, greedy: how long a candidate writes what the original writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitsmith.comparison.texts import DomainTokens
from bitsmith.models.tokenizer.vocabulary import piece

if TYPE_CHECKING:
    from bitsmith.models.tokenizer import Tokenizer
    from bitsmith.runtime.language_model import LanguageModel

PROMPTS = 3
_PROMPT_TOKENS = 24


@dataclass(frozen=True)
class Generation:
    """One prompt. original: what the original writes; texts: what each candidate writes"""

    prompt: str
    original: str
    texts: Mapping[str, str]


def usual_prompts(tokens: DomainTokens, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The beginnings of windows in equal distances, from the first whole word on."""
    windows = tokens.windows
    chosen = sorted({len(windows) * each // PROMPTS for each in range(PROMPTS)})
    texts = (_beginning(windows.tokens[number].tolist(), tokenizer) for number in chosen)
    return tuple(text for text in texts if text)


def _beginning(ids: list[int], tokenizer: Tokenizer) -> str:
    """_PROMPT_TOKENS tokens, of which the first begins a word; the first ones of all where none does."""
    places = range(1, len(ids) - _PROMPT_TOKENS)
    start = next((at for at in places if piece(tokenizer.vocabulary, ids[at])[:1].isspace()), 0)
    return tokenizer.decode(ids[start : start + _PROMPT_TOKENS]).strip()


def written(model: LanguageModel, prompts: Sequence[str], tokens: int) -> list[str]:
    """Greedy continuations."""
    return model.generate_batch(prompts, max_tokens=tokens, temperature=0.0)


def same_until(original: str, text: str) -> int:
    """Number of characters up to the first difference."""
    pairs = enumerate(zip(original, text, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(original), len(text)))
