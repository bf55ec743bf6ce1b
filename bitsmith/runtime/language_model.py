"""LanguageModel: a checkpoint loaded for running. Text in, text out, and logits for measuring."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.errors import UsageError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.runtime.base import AnyCache, AnyDecoder
from bitsmith.runtime.generate import DEFAULT, Generated, Sampling, capacity, generate, generate_batch

if TYPE_CHECKING:
    from bitsmith.models.tokenizer import StreamDecoder, Tokenizer


class LanguageModel:
    """A decoder with its tokenizer.

    name: short name for reports
    config: the shape of the model
    tokenizer: see `bitsmith.models.tokenizer.Tokenizer`
    decoder: the network, for those who need hidden states or a cache of their own
    """

    def __init__(self, name: str, decoder: AnyDecoder, tokenizer: Tokenizer) -> None:
        self.name = name
        self.decoder = decoder
        self.tokenizer = tokenizer
        self._kept: tuple[list[int], AnyCache] | None = None
        self._lock = Lock()

    @property
    def config(self) -> ModelConfig:
        """The decoder's shape."""
        return self.decoder.config

    @property
    def token_bytes(self) -> int:
        """Bytes of matrices in memory that one generated token reads."""
        return self.decoder.token_bytes

    def logits(self, tokens: np.ndarray, *, first: int = 0) -> np.ndarray:
        """Logits of positions first .. n - 1: integers [batch, n] -> float32 [batch, n - first, vocab].

        Raises UsageError for token ids out of range.
        """
        return self.decoder.numpy(self.decoder.forward(tokens, first=first))

    def stream(
        self, prompt: str | Sequence[int], *, max_tokens: int = 128, sampling: Sampling = DEFAULT
    ) -> Generator[str]:
        """Continue a text or token ids. Yields pieces of text as they are generated, without end tokens.

        Closing the iterator stops the work. Keys and values of the last call are kept: a prompt that begins like
        it (the next turn of a conversation) is computed from where the two part.
        Raises UsageError at once where the prompt does not fit the model's context.
        """
        ids = self.prompt_ids(prompt) if isinstance(prompt, str) else list(prompt)
        ends = self.tokenizer.end_ids
        cache = self._take_cache(ids, capacity(self.decoder, len(ids), max_tokens))
        tokens = generate(self.decoder, ids, max_tokens=max_tokens, sampling=sampling, end_ids=ends, cache=cache)
        return self._pieces(tokens, ids, cache)

    def generate(self, prompt: str | Sequence[int], *, max_tokens: int = 128, sampling: Sampling = DEFAULT) -> str:
        """The whole continuation; see `stream`."""
        return "".join(self.stream(prompt, max_tokens=max_tokens, sampling=sampling))

    def generate_batch(
        self, prompts: Sequence[str | Sequence[int]], *, max_tokens: int = 128, sampling: Sampling = DEFAULT
    ) -> list[str]:
        """The continuations of several prompts, computed together."""
        ids = [self.prompt_ids(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        ends = self.tokenizer.end_ids
        done = generate_batch(self.decoder, ids, max_tokens=max_tokens, sampling=sampling, end_ids=ends)
        return [self._text(prompt, completion.tokens) for prompt, completion in zip(ids, done, strict=True)]

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a text to continue, special tokens in it recognised, the start token before it if the model
        wants one. An empty text becomes the start token. Raises UsageError where there is none either.
        """
        ids = self.tokenizer.encode(text, add_special=True, parse_special=True)
        if not ids and self.tokenizer.bos is not None:
            ids = [self.tokenizer.bos]
        if not ids:
            raise UsageError("the prompt is empty and the model has no start token; give a prompt.")
        return ids

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation up to the place of the model's answer.

        messages: {"role": "system" | "user" | "assistant", "content": text}, oldest first. Raises UnsupportedError
        where the model has no chat template.
        """
        return self.tokenizer.encode_chat(messages)

    def _text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        text = self._decoding(prompt)
        shown = [text.feed(token) for token in tokens if self._shows(token)]
        return "".join(shown) + text.finish()

    def _pieces(self, tokens: Iterator[Generated], prompt: list[int], cache: AnyCache) -> Generator[str]:
        text, ids = self._decoding(prompt), list(prompt)
        try:
            for generated in tokens:
                ids.append(generated.token)
                piece = text.feed(generated.token) if self._shows(generated.token) else ""
                if piece:
                    yield piece
            rest = text.finish()
            if rest:
                yield rest
        finally:
            self._kept = ids[: cache.lengths[0]], cache

    def _decoding(self, prompt: Sequence[int]) -> StreamDecoder:
        return self.tokenizer.stream(continues=len(prompt) > 1)  # one token is the start token, or as good as none

    def _shows(self, token: int) -> bool:
        """Whether a token stands for text: not an end token, nor one of the rows that pad an embedding."""
        return token not in self.tokenizer.end_ids and token < self.tokenizer.size

    def _take_cache(self, ids: list[int], room: int) -> AnyCache:
        """A cache for `ids` with `room` positions, holding what the last call computed of them."""
        with self._lock:  # two threads must not fill one cache
            known, cache = self._kept or ([], None)
            self._kept = None
        same = 0
        for ours, theirs in zip(ids[:-1], known, strict=False):
            if ours != theirs:
                break
            same += 1
        if cache is None or same == 0:
            return self.decoder.new_cache(room)
        cache.truncate(0, same)
        return cache if cache.capacity >= room else cache.grown(room)
