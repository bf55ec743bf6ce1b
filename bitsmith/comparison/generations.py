"""The same prompts to every model, greedy: how long a candidate writes what the original writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitsmith.comparison.texts import DomainTokens

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
    """The beginnings of windows in equal distances."""
    windows = tokens.windows
    chosen = sorted({len(windows) * each // PROMPTS for each in range(PROMPTS)})
    texts = (tokenizer.decode(windows.tokens[number, :_PROMPT_TOKENS].tolist()).strip() for number in chosen)
    return tuple(text for text in texts if text)


def written(model: LanguageModel, prompts: Sequence[str], tokens: int) -> list[str]:
    """Greedy continuations."""
    return model.generate_batch(prompts, max_tokens=tokens, temperature=0.0)


def same_until(original: str, text: str) -> int:
    """Number of characters up to the first difference."""
    pairs = enumerate(zip(original, text, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(original), len(text)))
