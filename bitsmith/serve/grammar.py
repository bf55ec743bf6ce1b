"""Grammars that answers must follow, through llguidance: JSON schemas, regular expressions, Lark."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.models.tokenizer import Tokenizer
from bitsmith.models.tokenizer.vocabulary import TokenType, piece
from bitsmith.serve.endless import endless

# without this, models that know no end write blanks for ever
_KEPT = 16  # grammars that are kept
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_REGEX = "regex parse error:"
ANY_JSON = json.dumps({"type": "object"})


class Grammars:
    """Makes the matchers of one model's tokenizer. Raises UnsupportedError where llguidance is not installed."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise UnsupportedError(
                "answers of a given form (response_format, grammar, a tool that must be called) need llguidance: "
                "pip install 'bitsmith[serve]'"
            ) from error
        self._library: Any = llguidance
        self._made: dict[str, Any] = {}  # by grammar, the one used last at the end
        self._lock = threading.Lock()
        self.vocab = vocab
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Words(tokenizer, vocab)), n_vocab=vocab)

    def schema(self, schema: Mapping[str, Any] | str) -> str:
        """The grammar of a JSON schema. Raises UsageError for one that cannot be followed."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        try:
            grammar = self._library.LLMatcher.grammar_from_json_schema(text, defaults=_COMPACT)
        except ValueError as error:
            raise UsageError(f"the JSON schema cannot be followed: {_brief(str(error))}") from error
        grammar = self.checked(grammar, "JSON schema")
        try:
            never = endless(json.loads(text))
        except (RecursionError, ValueError) as error:
            raise UsageError(f"the JSON schema cannot be followed: {_brief(str(error))}") from error
        if never:
            raise UsageError("the JSON schema cannot be followed: only a value that never ends has its form.")
        return grammar

    def checked(self, grammar: str, what: str = "grammar") -> str:
        """The grammar. Raises UsageError if it cannot be followed."""
        wrong = self._library.LLMatcher.validate_grammar(grammar, self._tokenizer)
        if wrong:
            raise UsageError(f"the {what} cannot be followed: {_brief(wrong)}")
        try:
            self.matcher(grammar).allowed()  # some are seen to fail at the first token only
        except UsageError as error:
            raise UsageError(f"the {what} cannot be followed: {error.message}") from error
        return grammar

    def lark(self, text: str) -> str:
        """The grammar of Lark rules."""
        return self.checked(self._library.LLMatcher.grammar_from_lark(_unicode(text, "grammar")))

    def regex(self, text: str) -> str:
        """The grammar of a regular expression."""
        return self.checked(self._library.LLMatcher.grammar_from_regex(_unicode(text, "regex")), "regex")

    def matcher(self, grammar: str) -> Matcher:
        """Follows one answer. Those made last are kept, as a large grammar takes a second to make."""
        with self._lock:
            made = self._made.pop(grammar, None)
        made = self._library.LLMatcher(self._tokenizer, grammar) if made is None else made
        copy = made.deep_copy()
        with self._lock:
            self._made[grammar] = made
            while len(self._made) > _KEPT:
                del self._made[next(iter(self._made))]
        return Matcher(copy, self.vocab)


class Matcher:
    """Says which tokens may come next in one answer."""

    def __init__(self, inner: Any, vocab: int) -> None:
        self._inner = inner
        self._bits = np.zeros((1, (vocab + 31) // 32), np.int32)
        self._vocab = vocab

    def allowed(self) -> np.ndarray:
        """bool [vocab]. Raises UsageError where no token fits."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._inner, self._bits)
        self._check()
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        found: np.ndarray = bits[: self._vocab].astype(bool)
        return found

    def take(self, token: int) -> None:
        """Go on behind a token."""
        self._inner.consume_token(token)
        self._check()

    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._inner.is_stopped())

    def _check(self) -> None:
        if self._inner.is_error():
            raise UsageError(f"the grammar of the answer failed: {_brief(self._inner.get_error())}")


def _unicode(text: str, what: str) -> str:
    """The text. Raises UsageError where it holds half a character, as JSON's \\ud800 is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the {what} cannot be followed: character {error.start + 1} is half of a surrogate pair."
        ) from error
    return text


def _brief(error: str) -> str:
    """The first line of the library's words; behind it stands the state of its parser.

    What is wrong with a regular expression stands in a later line.
    """
    first, _, rest = error.strip().partition("\n")
    reason = next((line.removeprefix("error: ") for line in rest.splitlines() if line.startswith("error: ")), "")
    if first.endswith(_REGEX) and reason:
        first = f"{first.removesuffix(_REGEX)[:200]}{reason}"
    return first[:300]


class _Words:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        vocabulary = tokenizer.vocabulary
        special = (TokenType.CONTROL, TokenType.UNKNOWN)
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.end_ids, default=vocab - 1)
        self.bos_token_id = tokenizer.bos
        texts = [
            f"\xff<{text}>".encode("latin-1", "replace") if kind in special else piece(vocabulary, token)
            for token, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        ][:vocab]
        self.tokens = texts + [b""] * (vocab - len(texts))
        self.special_token_ids = [token for token, kind in enumerate(vocabulary.types) if kind in special]

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text."""
        words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(words, add_special=False)
