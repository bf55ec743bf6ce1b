"""The task of the process that renders chat templates (see `bitsmith.system.limited`). It imports jinja2 alone.

The environment is the one that Hugging Face documents for chat templates: Jinja's immutable sandbox with trim_blocks,
lstrip_blocks, loop controls, `generation`, `tojson`, `raise_exception` and `strftime_now`.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.debug  # imported now, since later there are no files
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_FAILURES = (
    *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError, ImportError),
)


class StoppedError(Exception):
    """The template refuses the conversation with raise_exception."""


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training. Here it has no effect."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson`: plain JSON, without escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: object) -> NoReturn:
    """The function by which templates refuse a conversation."""
    raise StoppedError(message)


def strftime_now(form: str) -> str:
    """The time now, by strftime."""
    return datetime.now().strftime(form)


@lru_cache(maxsize=8)
def compiled(template: str) -> jinja2.Template:
    """The template, ready to render. Raises jinja2.TemplateError, or what Python's compiler raises."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, GenerationTag]
    )
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(template)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Render request["template"] with request["variables"]: at most request["longest"] characters.

    One of "text", "refused" (the template's reason), "invalid" and "line" (not a template), "failed" (an error while
    rendering), "too_long".
    """
    try:
        template = compiled(request["template"])
    except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
        return {"invalid": str(error), "line": getattr(error, "lineno", None)}
    parts: list[str] = []
    length = 0
    try:
        for part in template.generate(request["variables"]):
            length += len(part)
            if length > request["longest"]:
                return {"too_long": True}
            parts.append(part)
    except StoppedError as stop:
        return {"refused": str(stop)[:2000]}
    except _FAILURES as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:2000]}"}
    return {"text": "".join(parts)}


time.tzset()  # reads the time zone's file
answer({"template": "{{ strftime_now('%c') }}{{ 1 / 0 }}", "variables": {}, "longest": 100})
