"""LanguageModel: a checkpoint loaded for running. Text in, text out, and logits for measuring."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from bitsmith.errors import UsageError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.runtime.base import AnyCache, AnyDecoder
from bitsmith.runtime.generate import Generated, capacity, generate, generate_batch
from bitsmith.runtime.messages import check_messages
from bitsmith.runtime.sampling import Sampling, chosen_sampling
from bitsmith.runtime.text_stream import TextStream, TimedTokens
from bitsmith.system.options import with_signature

if TYPE_CHECKING:
    from bitsmith.models.tokenizer import StreamDecoder, Tokenizer
    from bitsmith.runtime.sampling_words import SamplingWords
    from bitsmith.system.core_choices import CoreChoices


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
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template, so that it can be talked with."""
        return self.tokenizer.has_chat_template

    @property
    def token_bytes(self) -> int:
        """Bytes of matrices in memory that one generated token reads."""
        return self.decoder.token_bytes

    @property
    def choices(self) -> CoreChoices | None:
        """What the C++ core chose for this processor; None where it does not run the model."""
        return self.decoder.choices

    def logits(self, tokens: np.ndarray, *, first: int = 0) -> np.ndarray:
        """Logits of positions first .. n - 1: integers [batch, n] -> float32 [batch, n - first, vocab].

        Raises UsageError for token ids out of range.
        """
        return self.decoder.numpy(self.decoder.forward(tokens, first=first))

    def __repr__(self) -> str:
        shape = f"{self.config.arch}, {self.config.layers} layers of {self.config.hidden}"
        return f"LanguageModel({self.name!r}, {shape}, context {self.config.context})"

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 128,
        lookup: int = 0,
        sampling: Sampling | None = None,
        **words: Unpack[SamplingWords],
    ) -> TextStream:
        """Continue a text or token ids. Gives pieces of text as they are generated, without end tokens.

        max_tokens: at most so many tokens; None: until the model ends the text or its context is full
        lookup: at most so many tokens are guessed from the text so far and computed in the same step as the next one.
            With the kernels int16 and int8 the text is the same without; where it repeats, it comes faster. 0: none
        sampling: how tokens are drawn; other keywords (temperature, top_k, top_p, min_p, repeat_penalty, seed) change
            single fields of it, see `bitsmith.Sampling`
        Closing the stream stops the work. Keys and values of the last call are kept: a prompt that begins like
        it (the next turn of a conversation) is computed from where the two part.
        Raises UsageError at once where the prompt does not fit the model's context.
        """
        drawn = chosen_sampling("stream", sampling, words)
        ids = self._ids(prompt)
        most = self.config.context + 1 if max_tokens is None else max_tokens  # more than the context lets come
        ends = self.tokenizer.end_ids
        cache = self._take_cache(ids, capacity(self.decoder, len(ids), most))
        reused = int(cache.lengths[0])
        tokens = generate(self.decoder, ids, max_tokens=most, sampling=drawn, end_ids=ends, cache=cache, lookup=lookup)
        timed = TimedTokens(tokens, prompt_tokens=len(ids), reused_tokens=reused)
        return TextStream(timed, self._pieces(timed, ids, cache))

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 128,
        lookup: int = 0,
        sampling: Sampling | None = None,
        **words: Unpack[SamplingWords],
    ) -> str:
        """The whole continuation; see `stream`."""
        drawn = chosen_sampling("generate", sampling, words)
        return "".join(self.stream(prompt, max_tokens=max_tokens, lookup=lookup, sampling=drawn))

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        max_tokens: int = 128,
        sampling: Sampling | None = None,
        **words: Unpack[SamplingWords],
    ) -> list[str]:
        """The continuations of several prompts, computed together; see `stream`."""
        drawn = chosen_sampling("generate_batch", sampling, words)
        ids = [self._ids(prompt) for prompt in prompts]
        ends = self.tokenizer.end_ids
        done = generate_batch(self.decoder, ids, max_tokens=max_tokens, sampling=drawn, end_ids=ends)
        return [self._text(prompt, completion.tokens) for prompt, completion in zip(ids, done, strict=True)]

    def stream_chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = 512,
        lookup: int = 0,
        sampling: Sampling | None = None,
        **words: Unpack[SamplingWords],
    ) -> TextStream:
        """The model's answer to a conversation, by its chat template, in pieces as `stream` gives them.

        messages: see `chat_ids`; a text alone is one message of the user
        Raises UnsupportedError where the model has no chat template.
        """
        drawn = chosen_sampling("stream_chat", sampling, words)
        spoken = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return self.stream(self.chat_ids(spoken), max_tokens=max_tokens, lookup=lookup, sampling=drawn)

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = 512,
        lookup: int = 0,
        sampling: Sampling | None = None,
        **words: Unpack[SamplingWords],
    ) -> str:
        """The model's whole answer to a conversation; see `stream_chat`."""
        drawn = chosen_sampling("chat", sampling, words)
        return "".join(self.stream_chat(messages, max_tokens=max_tokens, lookup=lookup, sampling=drawn))

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a text to continue, special tokens in it recognised, the start token before it if the model
        wants one. An empty text becomes the start token. Raises UsageError where there is none either.
        """
        self.check_length(text)
        ids = self.tokenizer.encode(text, add_special=True, parse_special=True)
        if not ids and self.tokenizer.bos is not None:
            ids = [self.tokenizer.bos]
        if not ids:
            raise UsageError("the prompt is empty and the model has no start token; give a prompt.")
        return ids

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation up to the place of the model's answer.

        messages: {"role": "system" | "user" | "assistant", "content": text}, oldest first. Special tokens that they
        spell out are text. Raises UnsupportedError where the model has no chat template.
        """
        check_messages(messages)
        return self.tokenizer.encode_chat(messages)

    def check_length(self, text: str) -> None:
        """Raise UsageError for a text that has too many bytes for the context, whatever its tokens are."""
        most = self.config.context * self.tokenizer.longest
        if len(text) > most:
            raise UsageError(
                f"the prompt has {len(text):,} characters, but a context of {self.config.context:,} tokens holds "
                f"{most:,} at most; shorten it."
            )

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            return self.prompt_ids(prompt)
        ids = list(prompt)
        if not all(isinstance(token, int | np.integer) for token in ids):
            raise UsageError(f"prompt: expected a text or a list of token ids, found {prompt!r:.60}.")
        return ids

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
        if cache is None:
            return self.decoder.new_cache(room)
        same = cache.reusable(0, min(same, int(cache.lengths[0])))
        if same == 0:
            return self.decoder.new_cache(room)
        cache.truncate(0, same)
        return cache if cache.capacity >= room else cache.grown(room)


for _method in (
    *(LanguageModel.stream, LanguageModel.generate, LanguageModel.generate_batch),
    *(LanguageModel.stream_chat, LanguageModel.chat),
):
    with_signature(_method, Sampling)
