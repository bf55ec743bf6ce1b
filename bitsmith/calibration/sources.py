"""Where calibration tokens come from: text files, chats, the built-in text, data sets of the hub, the model itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsmith.errors import BitsmithError, FileError, UsageError
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.reference.texts import built_in_name, calibration_text

if TYPE_CHECKING:
    from bitsmith.models.tokenizer import Tokenizer

DEFAULT = "default"  # --calibration default: the built-in text
SELF = "self"  # --calibration self: text that the model generates
DEFAULT_WINDOWS = 128
DEFAULT_CONTEXT = 512
MIN_CONTEXT = 8

_JSON_LINES = frozenset({".jsonl", ".ndjson"})
_ADVICE = "give a longer one with --calibration, or a smaller --calibration-context"


@dataclass(frozen=True)
class Request:
    """The calibration tokens that are requested, within the model's limits.

    source: see `read_tokens`
    windows: maximum number of windows
    context: tokens per window
    seed: seed that chooses the windows
    """

    source: str
    windows: int
    context: int
    seed: int

    @classmethod
    def of(
        cls, source: str | None, *, limit: int, tokens: int | None = None, context: int | None = None, seed: int = 0
    ) -> Request:
        """A request with defaults filled in: 128 windows of 512 tokens, or of `limit` tokens if that is less.

        limit: the model's context, in tokens
        Raises UsageError if the context is below 8 or above `limit` tokens, if `tokens` is less than one window, or
        if the seed is negative.
        """
        wanted = min(DEFAULT_CONTEXT, limit) if context is None else context
        if not MIN_CONTEXT <= wanted <= limit:
            raise UsageError(
                f"--calibration-context {wanted}: expected {MIN_CONTEXT} to {limit} tokens; the model's context is the "
                "upper limit."
            )
        total = DEFAULT_WINDOWS * wanted if tokens is None else tokens
        if total < wanted:
            raise UsageError(
                f"--calibration-tokens {total}: expected at least one window of {wanted} tokens; give more tokens, or "
                "a smaller --calibration-context."
            )
        if seed < 0:
            raise UsageError(f"--seed {seed}: expected 0 or more.")
        return cls(DEFAULT if source is None else source, total // wanted, wanted, seed)


@dataclass(frozen=True)
class CalibrationTokens:
    """Windows of token ids.

    source: name of the text, without its folder
    tokens: int64 [windows, context]
    seed: seed that chose the windows
    """

    source: str
    tokens: np.ndarray
    seed: int

    @property
    def record(self) -> CalibrationRecord:
        """The record for a manifest."""
        digest = hashlib.sha256(np.ascontiguousarray(self.tokens, "<i8").tobytes()).hexdigest()
        windows, context = self.tokens.shape
        return CalibrationRecord(self.source, digest, windows * context, context, self.seed)


def own_text(name: str) -> str:
    """Name of the text that model `name` generates, for records."""
    return f"{name}'s own text"


def read_tokens(request: Request, tokenizer: Tokenizer, *, vocab: int) -> CalibrationTokens:
    """The windows of a text. For the source "self" use `bitsmith.calibration.generated`.

    request.source: "default" (the built-in text), a UTF-8 text file, a .jsonl file with {"messages": [...]} (rendered
        by the model's chat template) or {"text": ...} on each line, or a data set of the hub ("owner/name", or
        "owner/name:FILE")
    vocab: number of tokens the model knows

    Texts of a .jsonl file follow each other without gaps, so no window holds padding. If the text has more windows
    than requested, the seed draws some; they keep the text's order. As in llama-imatrix, windows do not overlap and an
    incomplete last window is dropped. If the tokenizer adds a start token, it replaces each window's first token.
    Raises FileError if the text cannot be read or has no full window, UsageError if a token is outside the model's
    vocabulary, UnsupportedError if chats cannot be rendered.
    """
    name, ids = _token_ids(request.source, tokenizer)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab):
        raise UsageError(
            f"{name}: the tokenizer gives token {int(ids.max())}, but the model has {vocab} tokens; use the tokenizer "
            "that belongs to the weights."
        )
    return CalibrationTokens(name, _windows(ids, request, name, tokenizer), request.seed)


def _windows(ids: np.ndarray, request: Request, name: str, tokenizer: Tokenizer) -> np.ndarray:
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


def _token_ids(source: str, tokenizer: Tokenizer) -> tuple[str, np.ndarray]:
    """A source's name and its token ids, int64 [tokens]."""
    if source == DEFAULT:
        return built_in_name(), _array(tokenizer.encode(calibration_text(), add_special=True))
    path = _found(source)
    name = path.name
    text = read_utf8(path)
    if path.suffix.lower() not in _JSON_LINES:
        return name, _array(tokenizer.encode(text, add_special=True))
    return name, _array(token for each in _encoded_lines(text, path, tokenizer) for token in each)


def _array(ids: Iterable[int]) -> np.ndarray:
    return np.fromiter(ids, np.int64)


def _found(source: str) -> Path:
    """The file that `source` names. A file of a hub data set is downloaded."""
    from bitsmith.calibration.datasets import download_text, looks_like_data_set

    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.exists() and looks_like_data_set(source):
        return download_text(source)
    found = "is a folder" if path.is_dir() else "there is no such file"
    raise FileError(
        f"--calibration {source}: {found}; expected a UTF-8 text file, a .jsonl file of chats or texts, an importance "
        f'file (.gguf, .dat), a data set of the hub (owner/name), "{SELF}" or "{DEFAULT}".'
    )


def read_utf8(path: Path) -> str:
    """The file's text with its own line ends. Raises FileError if it cannot be read, is empty or is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: the calibration text cannot be read ({error.strerror}); check the path.") from error
    if not data.strip():
        raise FileError(f"{path}: the calibration text is empty; give a file of UTF-8 text with --calibration.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path}: the calibration text must be UTF-8, but byte 0x{data[error.start]:02x} at position {error.start} "
            f"is not ({error.reason}); convert the file to UTF-8."
        ) from error


def _encoded_lines(text: str, path: Path, tokenizer: Tokenizer) -> Iterator[Sequence[int]]:
    """Token ids of each text or chat in a .jsonl file, one per line; blank lines and empty texts give none."""
    found = False
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        entry = _entry(line, where)
        if "messages" in entry:
            messages = _messages(entry["messages"], where)
            ids = _rendered(messages, where, tokenizer) if messages else []
        else:
            written = _text(entry, where)
            ids = tokenizer.encode(written, add_special=True) if written.strip() else []
        found = found or bool(ids)
        yield ids
    if not found:
        raise FileError(f"{path}: all chats and texts are empty; give a file with text.")


def _entry(line: str, where: str) -> Mapping[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where}: not JSON ({error}); a .jsonl file has one JSON object on each line.") from error
    if not isinstance(entry, dict) or not ("messages" in entry or "text" in entry):
        keys = f"an object with {', '.join(list(entry)[:5]) or 'nothing'}" if isinstance(entry, dict) else "no object"
        raise FileError(f'{where}: expected {{"messages": [...]}} or {{"text": "..."}}, found {keys}.')
    return entry


def _messages(messages: Any, where: str) -> list[Mapping[str, Any]]:
    """A chat's messages, except those without content."""
    if not isinstance(messages, list) or not all(
        isinstance(each, dict) and isinstance(each.get("role"), str) for each in messages
    ):
        raise FileError(f'{where}: expected "messages" to be a list of {{"role": ..., "content": ...}}.')
    return [each for each in messages if not isinstance(each.get("content"), str | None) or (each.get("content"))]


def _text(entry: Mapping[str, Any], where: str) -> str:
    text = entry["text"]
    if not isinstance(text, str):
        raise FileError(f'{where}: expected "text" to be a string, found {type(text).__name__}.')
    return text


def _rendered(messages: Sequence[Mapping[str, Any]], where: str, tokenizer: Tokenizer) -> list[int]:
    try:
        return tokenizer.encode_chat(messages, add_generation_prompt=False)
    except BitsmithError as error:
        raise type(error)(f"{where}: {error}") from error
