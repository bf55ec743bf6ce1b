"""Chat templates turn a conversation into the text that the model was trained on.

The environment is the one that Hugging Face documents for chat templates: Jinja with trim_blocks, lstrip_blocks, loop
controls, `tojson`, `raise_exception` and `strftime_now`. It is bounded, since the template of a model is not trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.tokenizer.sandbox import LONGEST, BoundedEnvironment, StoppedError, TooMuchError

_LONGEST_TEMPLATE = 1_000_000


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    special: Mapping[str, str],
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The text of a conversation.

    messages: messages with "role" and "content", oldest first
    special: texts of special tokens by variable name ("bos_token", ...)
    add_generation_prompt: end with the beginning of the assistant's answer
    tools: JSON schemas of functions; None without tools

    Raises UnsupportedError if the template refuses these messages, FileError if it is broken or exceeds its bounds.
    """
    environment = BoundedEnvironment()
    compiled = _compiled(template, environment)
    variables = {
        **special,
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": add_generation_prompt,
        "tools": None if tools is None else [dict(tool) for tool in tools],
        "documents": None,
    }
    parts: list[str] = []
    length = 0
    try:
        for part in compiled.generate(variables):
            environment.step()
            length += len(part)
            if length > LONGEST:
                raise TooMuchError(f"writes more than {LONGEST:,} characters")
            parts.append(part)
    except StoppedError as stop:
        raise UnsupportedError(f"the model's chat template refuses this conversation: {stop}") from stop
    except TooMuchError as excess:
        raise FileError(f"the model's chat template {excess}, and was stopped; give another one") from excess
    except (
        *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError),
        *(RecursionError, TypeError, ValueError),
    ) as error:
        reason = f"{type(error).__name__}: {error}"
        raise FileError(f"the model's chat template fails on this conversation ({reason}); give another one") from error
    return "".join(parts)


def _compiled(template: str, environment: BoundedEnvironment) -> jinja2.Template:
    if len(template) > _LONGEST_TEMPLATE:
        raise FileError(
            f"the model's chat template has {len(template):,} characters, more than {_LONGEST_TEMPLATE:,}; use another"
        )
    try:
        return environment.from_string(template)
    except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f" in line {line}" if line else ""
        raise FileError(f"the model's chat template is not valid Jinja{where}: {error}; give another one") from error
