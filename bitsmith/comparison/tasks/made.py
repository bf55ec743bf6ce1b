"""Questions made from a text that the model has not seen: which of four continuations is the true one.

The other three come from elsewhere in the text. Everything is drawn with a fixed seed, so that the same text gives the
same questions. They need no download and no knowledge, and tell models apart by how well they follow a text.
"""

from __future__ import annotations

import re

import numpy as np

from bitsmith.comparison.tasks.items import Choice, Task
from bitsmith.comparison.texts import Domain
from bitsmith.errors import FileError
from bitsmith.texts.records import Chat

QUESTIONS = 100
_BEFORE, _AFTER = 48, 12  # words of the beginning and of a continuation
_CHOICES = 4
_SEED = 5
_WORD = re.compile(r"\s*\S+")


def made_task(domain: Domain, *, name: str = "continuation", questions: int = QUESTIONS) -> Task:
    """At most so many questions. Raises FileError for a text that is too short for one."""
    pieces: list[tuple[str, str]] = []
    for document in domain.texts.documents():
        content = document.content
        if isinstance(content, Chat):
            content = "\n".join(str(message.get("content", "")) for message in content.messages)
        words = _WORD.findall(content)
        step = _BEFORE + _AFTER
        for start in range(0, len(words) - step + 1, step):
            middle = start + _BEFORE
            pieces.append(("".join(words[start:middle]).lstrip(), "".join(words[middle : start + step])))
    if len(pieces) < _CHOICES:
        raise FileError(f"{domain.name}: the text is too short to make questions of it; give a longer one.")
    drawn = np.random.default_rng(_SEED)
    chosen = drawn.permutation(len(pieces))[:questions]
    return Task(name, tuple(_question(pieces, int(place), drawn) for place in np.sort(chosen)))


def _question(pieces: list[tuple[str, str]], place: int, drawn: np.random.Generator) -> Choice:
    others = drawn.permutation([each for each in range(len(pieces)) if each != place])[: _CHOICES - 1].tolist()
    continuations = [pieces[each][1] for each in others]
    answer = int(drawn.integers(_CHOICES))
    continuations.insert(answer, pieces[place][1])
    return Choice(pieces[place][0], tuple(continuations), answer)
