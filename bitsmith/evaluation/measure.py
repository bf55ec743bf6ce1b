"""Measures a model on a text, window by window, alone or against a reference model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bitsmith.errors import TensorError, UsageError
from bitsmith.evaluation.divergence import DivergenceMeter, compare
from bitsmith.evaluation.perplexity import PerplexityMeter, token_losses
from bitsmith.evaluation.result import Evaluation
from bitsmith.evaluation.windows import Windows, check_context, cut_windows
from bitsmith.quant.grid import Array
from bitsmith.reference.texts import evaluation_text
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.texts.sources import Texts, names_of, open_texts
from bitsmith.texts.tokens import MOST_TOKENS, Encoder, encode_texts

_log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 512
BATCH_LOGITS = 1 << 23  # logits computed at once: 32 MB of float32; more only if one window needs it
BATCH_TOKENS = 2048  # tokens computed at once; more is not faster on a CPU


class Shape(Protocol):
    """What the evaluation needs of a model's configuration: number of positions and of tokens."""

    @property
    def context(self) -> int: ...
    @property
    def vocab(self) -> int: ...


class Vocabulary(Protocol):
    """What reading a text needs of a model, which need not be loaded."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> Shape: ...
    @property
    def tokenizer(self) -> Encoder: ...


class Scorer(Vocabulary, Protocol):
    """A model that can be evaluated."""

    def logits(self, tokens: np.ndarray, *, first: int = 0) -> Array:
        """Logits of positions first .. n - 1: int64 [batch, n] -> float32 [batch, n - first, vocab]."""
        ...


@dataclass(frozen=True)
class TextWindows:
    """The windows of a text.

    starts: int64 [documents], the place in the text's tokens where each of its documents begins
    notes: notes for the user
    """

    windows: Windows
    starts: np.ndarray
    notes: tuple[str, ...] = ()


def evaluate(
    model: Scorer,
    *,
    against: Scorer | None = None,
    text: str | Path | Sequence[str | Path] | None = None,
    context: int = DEFAULT_CONTEXT,
    max_windows: int | None = None,
    report: Report = silent,
) -> Evaluation:
    """Perplexity of `model` on a text, as llama-perplexity measures it, and its divergence from `against`.

    The text is cut into windows of `context` tokens that do not overlap. The second half of each is scored.

    against: the reference model, usually the original; its tokenizer must give the same ids for the text
    text: one or several texts, joined in order, see `bitsmith.texts.sources.open_texts`; None for the built-in text
    max_windows: largest number of windows to score, from the start of the text; None for all
    report: called after each batch with the number of windows done

    Raises UsageError for a wrong context and for tokenizers that differ, FileError for a text that cannot be used,
    UnsupportedError for chats that the model cannot render, TensorError for logits that are not finite.
    """
    for each in (model, against):
        if each is not None:
            check_context(context, each.config.context, each.name)
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"--max-windows={max_windows}: expected 1 or more.")
    texts = open_texts(names_of(text), option="--text", built_in=evaluation_text)
    read = read_windows(model, texts, context=context, max_windows=max_windows, report=report)
    windows = read.windows
    if against is not None:
        theirs = read_windows(against, texts, context=context, max_windows=max_windows, report=report).windows
        require_same_tokens(model, against, windows, theirs, name=texts.name)
    _log.info("evaluating %s on %s: %d windows of %d tokens", model.name, texts.name, len(windows), context)
    meter, divergence = _measure(model, against, windows, report)
    own = meter.result()
    return Evaluation(
        model=model.name,
        against=None if against is None else against.name,
        text=texts.name,
        text_sha256=texts.sha256(),
        context=context,
        windows=len(windows),
        tokens=own.tokens,
        loss=own.loss,
        perplexity=own.perplexity,
        divergence=None if divergence is None else divergence.result(),
        notes=read.notes,
    )


def read_windows(
    model: Vocabulary, texts: Texts, *, context: int, max_windows: int | None, report: Report = silent
) -> TextWindows:
    """The windows to score. Text behind the last window is not read. Raises as `evaluate`."""
    tokenizer, name = model.tokenizer, texts.name
    wanted = MOST_TOKENS if max_windows is None else min(MOST_TOKENS, max_windows * context)
    read = encode_texts(texts, tokenizer, most=wanted, report=report)
    ids = read.ids
    if ids.size and (ids.min() < 0 or ids.max() >= model.config.vocab):
        raise UsageError(
            f"{model.name}: its tokenizer gives token {int(ids.max())} for {name}, but the model has "
            f"{model.config.vocab} tokens; the tokenizer and the weights do not belong together. Use the tokenizer of "
            "these weights."
        )
    windows = cut_windows(ids, context, start_token=tokenizer.bos if tokenizer.adds_bos else None, name=name)
    notes = read.notes if max_windows is None or len(windows) < max_windows else ()
    return TextWindows(windows, read.starts, notes)


def require_same_tokens(
    model: Vocabulary,
    against: Vocabulary,
    windows: Windows,
    theirs: Windows,
    *,
    name: str,
    advice: str = "Give --against the model that this file was made from.",
) -> None:
    """Raise UsageError unless both models get the same tokens of the text `name`.

    One vocabulary may be wider (padding).
    advice: what to do, for the message
    """
    if np.array_equal(windows.tokens, theirs.tokens):
        return
    both = f"{model.name} and {against.name} cannot be compared: their tokenizers read {name} differently"
    vocab = f"(vocabularies of {model.config.vocab} and {against.config.vocab})"
    bos = [each.tokenizer.bos if each.tokenizer.adds_bos else None for each in (model, against)]
    if bos[0] != bos[1]:
        what = " and ".join("no start token" if each is None else f"start token {each}" for each in bos)
        found = f"they add {what}"
    else:
        length = min(windows.tokens.size, theirs.tokens.size)
        ours_flat, theirs_flat = windows.tokens.reshape(-1), theirs.tokens.reshape(-1)
        differing = np.flatnonzero(ours_flat[:length] != theirs_flat[:length])
        at = int(differing[0]) if differing.size else None
        found = (
            f"one gives {windows.tokens.size} tokens in whole windows, the other {theirs.tokens.size}"
            if at is None
            else f"token {at} is {int(ours_flat[at])} in the first and {int(theirs_flat[at])} in the second"
        )
    raise UsageError(f"{both} {vocab}: {found}. {advice}")


def _measure(
    model: Scorer, against: Scorer | None, windows: Windows, report: Report
) -> tuple[PerplexityMeter, DivergenceMeter | None]:
    meter = PerplexityMeter()
    vocab = model.config.vocab if against is None else min(model.config.vocab, against.config.vocab)
    divergence = None if against is None else DivergenceMeter(vocab)
    batch = batch_of(windows.context, vocab)
    report(Progress("evaluate", 0, len(windows), "windows"))
    for start in range(0, len(windows), batch):
        tokens = windows.tokens[start : start + batch]
        targets = windows.targets[start : start + batch].reshape(-1)
        logits = scored_logits(model, tokens, windows.first)
        if against is None or divergence is None:
            meter.add(token_losses(logits, targets))
        else:
            compared = compare(logits, scored_logits(against, tokens, windows.first), targets)
            meter.add(compared.losses)
            divergence.add(compared)
        report(Progress("evaluate", min(start + batch, len(windows)), len(windows), "windows"))
    return meter, divergence


def batch_of(context: int, vocab: int) -> int:
    """Number of windows whose logits are computed at once, so that memory stays bounded."""
    return max(1, min(BATCH_TOKENS // context, BATCH_LOGITS // (context // 2 * vocab)))


def scored_logits(model: Scorer, tokens: np.ndarray, first: int) -> np.ndarray:
    """Logits of the scored positions, float32 [windows * (context - first - 1), vocab].

    A window's last token is no input, since no token after it is predicted.
    Raises TensorError for logits that are not finite.
    """
    logits = np.asarray(model.logits(tokens[:, :-1], first=first), dtype=np.float32)
    rows = logits.reshape(-1, logits.shape[-1])
    bad = int(np.count_nonzero(~np.isfinite(rows).all(axis=1)))
    if bad:
        raise TensorError(
            f"{model.name}: the model's logits must be finite, but {bad} of {len(rows)} predictions hold NaN or Inf; "
            "its weights are damaged or overflow. Check the file with `bitsmith inspect --verify`."
        )
    return rows
