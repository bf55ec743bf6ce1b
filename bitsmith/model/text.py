"""Text from tokens that come one at a time: a character may be spread over several of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "�"  # what decoding puts for bytes that are no whole character yet
_CONTEXT = 8  # tokens of the prompt that are decoded along, so that spaces between words come out right


class TextStream:
    """Turns tokens into pieces of text whose concatenation is the decoded continuation of a prompt.

    decode: ids -> text
    prompt: the tokens before the first
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(prompt[-_CONTEXT:])
        self._shown = len(self._ids)  # tokens whose text has been handed out

    def feed(self, token: int) -> str:
        """The text that is certain now; empty while a character is unfinished."""
        self._ids.append(token)
        text = self._pending()
        return "" if text.endswith(_UNFINISHED) else self._hand_out(text)

    def finish(self) -> str:
        """What is left, unfinished characters included."""
        return self._hand_out(self._pending())

    def _pending(self) -> str:
        before = self._decode(self._ids[: self._shown])
        after = self._decode(self._ids)
        if not after.startswith(before):  # the prompt ended within a character
            before = before.rstrip(_UNFINISHED)
        return after[len(before) :]

    def _hand_out(self, text: str) -> str:
        if text:
            self._ids = self._ids[self._shown :]
            self._shown = len(self._ids)
        return text
