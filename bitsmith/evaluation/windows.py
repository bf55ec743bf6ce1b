"""Windows: cuts a text's tokens like llama-perplexity. The second half of each window is scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitsmith.errors import FileError, UsageError

MIN_CONTEXT = 8


@dataclass(frozen=True)
class Windows:
    """Windows that do not overlap. Tokens at the end of the text that fill no window are dropped.

    tokens: [windows, context] int64, the model's input; each window begins with the start token, if the tokenizer adds
        one
    """

    tokens: np.ndarray

    @property
    def context(self) -> int:
        """Number of tokens in a window."""
        return int(self.tokens.shape[1])

    @property
    def first(self) -> int:
        """The first scored position: logits at first .. context - 2 predict tokens first + 1 .. context - 1."""
        return self.context // 2

    @property
    def targets(self) -> np.ndarray:
        """The tokens to predict: [windows, context - first - 1] int64."""
        return self.tokens[:, self.first + 1 :]

    def __len__(self) -> int:
        return int(self.tokens.shape[0])


def check_context(context: int, limit: int, name: str) -> None:
    """Raise UsageError unless `context` is even, at least 8, and at most `limit`, the context of the model `name`."""
    if context < MIN_CONTEXT or context % 2:
        raise UsageError(
            f"the context must be an even number of tokens, {MIN_CONTEXT} or more (the second half of each window "
            f"is scored); found {context}. Give --context=512, or another even number."
        )
    if context > limit:
        raise UsageError(
            f"{name}: a context of {context} tokens is more than the model's {limit}; "
            f"give --context={limit - limit % 2} or less."
        )


def cut_windows(ids: np.ndarray, context: int, *, start_token: int | None, name: str) -> Windows:
    """Cut token ids [tokens] into windows of `context`.

    start_token: id of the start token, if the tokenizer adds one. It replaces the first token of each window, so that
        the other tokens keep their positions.
    name: name of the text, for errors

    Raises FileError if the text is shorter than one window.
    """
    count = len(ids) // context
    if count == 0:
        raise FileError(
            f"{name}: the text has {len(ids)} tokens, but one window needs {context}; "
            "give a longer text with --text, or a smaller --context."
        )
    tokens = np.array(ids[: count * context], dtype=np.int64).reshape(count, context)
    if start_token is not None:
        tokens[:, 0] = start_token
    return Windows(tokens)
