"""Special tokens that a message spells out are text: someone who types <|im_end|> does not end the message.

A chat template makes one text of its own special tokens and of the messages. So before rendering, each special token in
a message is replaced by a character that occurs nowhere (`marked`). After it, the special tokens that are left are the
template's. They get names that occur nowhere, the characters become text again (`Renamed.text`), and an encoder that
knows the special tokens by these names alone encodes the whole text in one go (`Renamed.encoder`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from bitsmith.models.tokenizer.encoders import Encoder

# Unicode's private use areas A and B: no text has a use for these characters, and `_unused` checks
_MARKERS, _GUARDS = 0xF0000, 0x100000


def marked(
    messages: Sequence[Mapping[str, Any]], special: Iterable[str], *, avoid: str
) -> tuple[Sequence[Mapping[str, Any]], dict[str, str]]:
    """The messages with a marker in place of every special token they spell out, and the text of each marker.

    special: texts of special tokens
    avoid: no marker occurs in this text
    """
    whole = "\n".join(text for message in messages for text in texts_in(message))
    found = [text for text in special if text in whole]
    if not found:
        return messages, {}
    markers = dict(zip(found, _unused(whole + avoid, _MARKERS), strict=False))
    pattern = _pattern(found)

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: markers[match.group()], value)
        if isinstance(value, Mapping):
            return {key: changed(entry) for key, entry in value.items()}
        return [changed(entry) for entry in value] if isinstance(value, list | tuple) else value

    return [changed(message) for message in messages], {marker: text for text, marker in markers.items()}


def renamed(source: str, special: Collection[str], guard: str) -> tuple[str, dict[str, str], list[str]]:
    """A tokenizer.json with other names for its special tokens, which keep their ids.

    source: text of a tokenizer.json with a BPE model
    special: texts of special tokens
    guard: a character that every name begins and ends with
    Returns its text, the name of each special token, and the added tokens that keep their texts.
    """
    names = {text: f"{guard}{number}{guard}" for number, text in enumerate(sorted(special))}
    whole = json.loads(source)
    others = [token["content"] for token in whole["added_tokens"] if token["content"] not in names]
    for token in whole["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = whole["model"]
    model["vocab"] = {names.get(text, text): token for text, token in model["vocab"].items()}
    model["merges"] = [merge for merge in model["merges"] if not names.keys() & _parts(merge)]
    model["unk_token"] = names.get(model.get("unk_token"), model.get("unk_token"))
    whole["post_processor"] = None
    return json.dumps(whole, ensure_ascii=False), names, others


@dataclass(frozen=True)
class Renamed:
    """An encoder that knows special tokens by other names.

    guard: a character that every name begins and ends with
    names: text of a special token -> its name
    others: added tokens that are no special tokens
    """

    encoder: Encoder
    guard: str
    names: Mapping[str, str]
    others: Sequence[str]

    def ids(self, text: str, markers: Mapping[str, str]) -> list[int]:
        """Ids of a rendered template: its special tokens are special, what markers stand for is text.

        text: has no `guard`
        """
        others = [other for other in self.others if other in text]  # they keep their names
        pattern = _pattern([special for special in self.names if special in text] + others)
        named = pattern.sub(lambda match: self.names.get(match.group(), match.group()), text)
        for marker, spelled in markers.items():
            named = named.replace(marker, spelled)
        return self.encoder.encode(named, add_special_tokens=False).ids


def unused_guard(text: str) -> str:
    """A character for `Renamed.guard` that does not occur in a text."""
    return next(_unused(text, _GUARDS))


def _unused(text: str, first: int) -> Iterator[str]:
    taken = set(text)
    return (chr(code) for code in count(first) if chr(code) not in taken)


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds the first of these texts; of several that begin there, the longest. Nothing where there are none."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) if longest_first else "(?!)")


def _parts(merge: str | Sequence[str]) -> set[str]:
    """The two parts of a merge, and what they make."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return {left, right, left + right}


def texts_in(value: Any) -> Iterator[str]:
    """All texts in nested values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(entry)
