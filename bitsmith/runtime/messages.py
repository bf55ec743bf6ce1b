"""Checks of the messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bitsmith.errors import UsageError

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise UsageError unless there are messages, each with a known role, and with content or tool calls."""
    if not messages:
        raise UsageError('messages: expected at least one {"role": "user", "content": "..."}, found none.')
    for number, message in enumerate(messages, 1):
        where = f"message {number}"
        if not isinstance(message, Mapping):
            raise UsageError(f'{where}: expected {{"role": "user", "content": "..."}}, found {message!r:.60}.')
        if message.get("role") not in ROLES:
            raise UsageError(f"{where}: unknown role {message.get('role')!r:.40}; known are {', '.join(ROLES)}.")
        if "content" not in message and "tool_calls" not in message:
            raise UsageError(f'{where} has no "content"; give its text.')
