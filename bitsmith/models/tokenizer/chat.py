"""Chat templates turn a conversation into the text that the model was trained on.

A template is a program that comes with the model. It is rendered in a process with limits (`template_task`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitsmith.errors import FileError, UnsupportedError, UsageError
from bitsmith.system.limited import LimitedProcess, LimitError

LONGEST = 1_000_000  # characters of a rendered conversation; encoding so many takes seconds
_LONGEST_TEMPLATE = 1_000_000
_MUCH = 100_000  # characters of a conversation that may be why a template goes beyond its limits
_ADVICE = "; give another one"
_TASK = Path(__file__).with_name("template_task.py")


class TemplateError(FileError):
    """A chat template is broken, or goes beyond its limits."""

    @property
    def fault(self) -> str:
        """The message without what to do, for readers who cannot give another template."""
        return str(self).removesuffix(_ADVICE)


class ConversationError(TemplateError):
    """A chat template fails on a conversation. Others may do."""


class TemplateRenderer:
    """Renders chat templates. Its process starts with the first one and ends with the renderer.

    seconds: for one conversation
    """

    def __init__(self, *, seconds: float = 5.0) -> None:
        self._process = LimitedProcess(_TASK, packages=("jinja2", "markupsafe"), seconds=seconds)

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        special: Mapping[str, str],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of a conversation.

        messages: messages with "role" and "content", oldest first; plain values, as in JSON
        special: texts of special tokens by variable name ("bos_token", ...)
        add_generation_prompt: end with the beginning of the assistant's answer
        tools: JSON schemas of functions; None without tools

        Raises UnsupportedError if the template refuses these messages, TemplateError if it is broken or takes more
        time or memory than allowed, ConversationError if it fails on these messages.
        """
        if len(template) > _LONGEST_TEMPLATE:
            raise TemplateError(
                f"the model's chat template has {len(template):,} characters, more than {_LONGEST_TEMPLATE:,}{_ADVICE}"
            )
        variables = {
            **special,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "documents": None,
        }
        request = {"template": template, "variables": variables, "longest": LONGEST}
        try:
            reply = self._process.ask(request)
        except LimitError as excess:
            _check_said(messages, str(excess))
            raise TemplateError(f"the model's chat template {excess}, and was stopped{_ADVICE}") from excess
        except (TypeError, ValueError, RecursionError) as error:  # of the request's JSON
            raise UsageError(f"the messages of a conversation must be plain values, as in JSON: {error}.") from error
        if "too_long" in reply:
            _check_said(messages, f"writes more than {LONGEST:,} characters")
        return _text(reply)


def _check_said(messages: Sequence[Mapping[str, Any]], excess: str) -> None:
    """Raise UsageError where it is the length of a conversation that may have made a template go beyond its limits."""
    said = sum(len(value) for message in messages for value in message.values() if isinstance(value, str))
    if said > _MUCH:
        raise UsageError(f"the chat template {excess} for this conversation of {said:,} characters; shorten it.")


def _text(reply: Mapping[str, Any]) -> str:
    """The text in the task's reply, or its error."""
    if "refused" in reply:
        raise UnsupportedError(f"the model's chat template refuses this conversation: {reply['refused']}")
    if "invalid" in reply:
        where = f" in line {reply['line']}" if reply["line"] else ""
        raise TemplateError(f"the model's chat template is not valid Jinja{where}: {reply['invalid']}{_ADVICE}")
    if "failed" in reply:
        raise ConversationError(f"the model's chat template fails on this conversation ({reply['failed']}){_ADVICE}")
    if "too_long" in reply:
        raise TemplateError(
            f"the model's chat template writes more than {LONGEST:,} characters, and was stopped{_ADVICE}"
        )
    text: str = reply["text"]
    return text
