"""Whether a model says where its texts end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.errors import BitsmithError

if TYPE_CHECKING:
    from bitsmith.models.checkpoint import Checkpoint

NO_END_TOKEN = "the model names no end token: only the limit of tokens or a full context ends a text"


def end_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """A note where a model with a tokenizer names no end token; nothing where its tokenizer cannot be read."""
    try:
        ends = checkpoint.tokenizer().end_ids
    except BitsmithError:
        return ()
    return () if ends else (NO_END_TOKEN,)
