"""Calibration tokens: windows of the texts that the user names, see `bitsmith.texts`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitsmith.errors import FileError, UsageError
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.reference.texts import calibration_text
from bitsmith.system.progress import Report, silent
from bitsmith.texts.sources import DEFAULT, names_of, open_texts
from bitsmith.texts.tokens import Encoder, encode_texts

SELF = "self"  # names text that the model generates
DEFAULT_WINDOWS = 128
DEFAULT_CONTEXT = 512
MIN_CONTEXT = 8

_ADVICE = "give a longer one with --calibration, or a smaller --calibration-context"


@dataclass(frozen=True)
class Request:
    """The calibration tokens that are requested, within the model's limits.

    sources: see `read_tokens`
    windows: maximum number of windows
    context: tokens per window
    seed: seed that chooses the windows
    all_experts: whether every token counts for every expert, whatever the router chooses
    """

    sources: tuple[str | Path, ...]
    windows: int
    context: int
    seed: int
    all_experts: bool = False

    @classmethod
    def of(
        cls,
        sources: str | Path | Sequence[str | Path] | None = None,
        *,
        limit: int,
        tokens: int | None = None,
        context: int | None = None,
        seed: int = 0,
        all_experts: bool = False,
    ) -> Request:
        """A request with defaults filled in: 128 windows of 512 tokens, or of `limit` tokens if that is less.

        sources: one name or several; None for the built-in text
        limit: the model's context, in tokens
        Raises UsageError if the context is below 8 or above `limit` tokens, if `tokens` is less than one window, or
        if the seed is negative.
        """
        wanted = min(DEFAULT_CONTEXT, limit) if context is None else context
        if not MIN_CONTEXT <= wanted <= limit:
            raise UsageError(
                f"--calibration-context={wanted}: expected {MIN_CONTEXT} to {limit} tokens; the model's context is the "
                "upper limit."
            )
        total = DEFAULT_WINDOWS * wanted if tokens is None else tokens
        if total < wanted:
            raise UsageError(
                f"--calibration-tokens={total}: expected at least one window of {wanted} tokens; give more tokens, or "
                "a smaller --calibration-context."
            )
        if seed < 0:
            raise UsageError(f"--seed={seed}: expected 0 or more.")
        return cls(names_of(sources) or (DEFAULT,), total // wanted, wanted, seed, all_experts)


@dataclass(frozen=True)
class CalibrationTokens:
    """Windows of token ids.

    source: names of the texts, without their folders
    tokens: int64 [windows, context]
    seed: seed that chose the windows
    notes: notes for the user about reading
    all_experts: see `Request`
    available: tokens of the texts in whole windows, also of those that were not drawn; 0: unknown
    """

    source: str
    tokens: np.ndarray
    seed: int
    notes: tuple[str, ...] = ()
    all_experts: bool = False
    available: int = 0

    @property
    def record(self) -> CalibrationRecord:
        """The record for a manifest."""
        digest = hashlib.sha256(np.ascontiguousarray(self.tokens, "<i8").tobytes()).hexdigest()
        windows, context = self.tokens.shape
        return CalibrationRecord(self.source, digest, windows * context, context, self.seed, self.all_experts)


def own_text(name: str) -> str:
    """Name of the text that model `name` generates, for records."""
    return f"{name}'s own text"


def read_tokens(request: Request, tokenizer: Encoder, *, vocab: int, report: Report = silent) -> CalibrationTokens:
    """The windows of texts. For the source "self" use `bitsmith.calibration.generated`.

    request.sources: see `bitsmith.texts.sources.open_texts`
    vocab: number of tokens the model knows
    report: called while files are read

    Texts follow each other without gaps, so no window holds padding. If there are more windows than requested, the seed
    draws some; they keep the text's order. As in llama-imatrix, windows do not overlap and an incomplete last window is
    dropped. If the tokenizer adds a start token, it replaces each window's first token.
    Raises FileError if a text cannot be read or there is no full window, UsageError if a token is outside the model's
    vocabulary, UnsupportedError if chats cannot be rendered.
    """
    texts = open_texts(request.sources, option="--calibration", built_in=calibration_text)
    read = encode_texts(texts, tokenizer, report=report)
    name, ids = texts.name, read.ids
    if ids.size and (ids.min() < 0 or ids.max() >= vocab):
        raise UsageError(
            f"{name}: the tokenizer gives token {int(ids.max())}, but the model has {vocab} tokens; use the tokenizer "
            "that belongs to the weights."
        )
    windows = _windows(ids, request, name, tokenizer)
    available = len(ids) // request.context * request.context
    return CalibrationTokens(name, windows, request.seed, read.notes, request.all_experts, available)


def _windows(ids: np.ndarray, request: Request, name: str, tokenizer: Encoder) -> np.ndarray:
    """int64 [tokens] -> [windows, context]."""
    context = request.context
    count = len(ids) // context
    if count == 0:
        raise FileError(f"{name}: the text has {len(ids)} tokens, but one window needs {context}; {_ADVICE}.")
    windows = ids[: count * context].reshape(count, context)
    if count > request.windows:
        chosen = np.random.default_rng(request.seed).choice(count, request.windows, replace=False)
        windows = windows[np.sort(chosen)]
    windows = windows.copy()
    if tokenizer.adds_bos and tokenizer.bos is not None:
        windows[:, 0] = tokenizer.bos
    return windows
