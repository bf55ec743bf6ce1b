"""The built-in texts: Python's own documentation, which the interpreter contains for `help()`.

They need no download and are the same for everyone with the same Python. Other versions of Python have other texts, so
results are reported with the text's SHA-256, and figures from two versions must not be compared. The package contains
no text of its own.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping

from bitsmith.errors import FileError

EVALUATION_SHARE = 3  # one topic in so many is for evaluation, the others for calibration
REPEATED_FROM = 40  # a paragraph with more characters is kept only the first time


def evaluation_text() -> str:
    """Text to measure on: about 127,000 characters. It shares no topic and no paragraph with the calibration text.

    Raises FileError if this Python has no documentation.
    """
    return _joined(evaluation=True)


def calibration_text() -> str:
    """Text to collect activation statistics on: about 253,000 characters. Raises as `evaluation_text` does."""
    return _joined(evaluation=False)


def built_in_name() -> str:
    """Name of the built-in texts in reports."""
    return f"pydoc_data.topics of Python {platform.python_version()}"


def _joined(*, evaluation: bool) -> str:
    chosen = (text for name, text in distinct_topics(_topics()).items() if for_evaluation(name) is evaluation)
    return "\n\n\n".join(chosen) + "\n"


def _topics() -> Mapping[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileError(
            "the built-in text is Python's own documentation (pydoc_data.topics), but this Python installation does "
            "not have it; give a file of UTF-8 text with --text=FILE."
        ) from error
    found: Mapping[str, str] = topics
    return found


def for_evaluation(topic: str) -> bool:
    """Whether a topic belongs to the evaluation text. Only its name decides, so new topics do not move others."""
    return hashlib.sha256(topic.encode()).digest()[0] % EVALUATION_SHARE == 0


def distinct_topics(topics: Mapping[str, str]) -> dict[str, str]:
    """Topics sorted by name, each without paragraphs of earlier topics. Empty topics are left out.

    Topics quote each other at length (a fifth of the text). Without this the two texts would overlap.
    """
    seen: set[str] = set()
    distinct = {}
    for name in sorted(topics):
        kept = []
        for paragraph in topics[name].split("\n\n"):
            words = paragraph.strip()
            if words not in seen:
                kept.append(paragraph)
            if len(words) > REPEATED_FROM:
                seen.add(words)
        text = "\n\n".join(kept).strip("\n")
        if text:
            distinct[name] = text
    return distinct
