"""Errors in the forms that OpenAI's and Anthropic's clients understand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

from bitsmith.errors import BitsmithError
from bitsmith.models.tokenizer.chat import ConversationError, TemplateError
from bitsmith.serve.engine import BusyError

_ANTHROPIC = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
_ANTHROPIC |= {403: "permission_error"}
_ANTHROPIC |= {413: "request_too_large", 429: "rate_limit_error"}
_OPENAI = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


# a message that begins with the name of a field: "tools: ...", "max_tokens must ...", "message 2: ...", "the regex ..."
_NAMED = re.compile(r"(?:the )?(?P<name>[a-z_]+)(?:, [a-z_]+)*(?: \d+)?(?::| must | cannot )")
_FIELDS = {"message": "messages"}
_LONGEST = 60  # characters of a value in a message


def body(path: str, status: int, words: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error's answer, in the form of the API that `path` belongs to. param: the field at fault"""
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": _ANTHROPIC.get(status, "api_error"), "message": words}}
    kind = _OPENAI.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": words, "type": kind, "param": param, "code": None}}


def failure(
    path: str, status: int, words: str, headers: dict[str, str] | None = None, *, param: str | None = None
) -> JSONResponse:
    """The answer that says an error. param: the field at fault"""
    return JSONResponse(body(path, status, words, param), status, headers)


def of_fields(path: str, error: Mapping[str, Any]) -> JSONResponse:
    """The answer for a body that is no JSON, or whose fields are wrong. error: of pydantic"""
    places = [part for part in error["loc"] if part != "body"]
    if error["type"] == "json_invalid":
        reason = str(error.get("ctx", {}).get("error", "")).lower()
        at = f" at character {places[0]}" if places else ""
        return failure(path, 400, f"the body is not JSON: {reason}{at}.")
    words = error["msg"].replace("Input should be", "expected", 1)
    if error["type"] == "extra_forbidden":
        words = "the server does not know this field; leave it out."
    elif error["type"] == "missing":
        words = "this field is needed."
    elif words.startswith("expected"):
        found = repr(error["input"])
        words += f", found {found if len(found) <= _LONGEST else found[:_LONGEST] + '...'}."
    where = ".".join(map(str, places)) or "body"
    return failure(path, 400, f"{where}: {words}", param=str(places[0]) if places else None)


def of_body(path: str, error: RecursionError | UnicodeDecodeError) -> JSONResponse:
    """The answer for a body that cannot be taken apart."""
    if isinstance(error, RecursionError):
        return failure(path, 400, "the body is not JSON that can be read: it is nested too deep.")
    return failure(path, 400, f"the body is not JSON: it is not UTF-8 at byte {error.start}.")


def of_error(path: str, error: BitsmithError) -> JSONResponse:
    """The answer for an error of ours: 429 if the queue is full, 500 for a broken template, else 400."""
    if isinstance(error, BusyError):
        return failure(path, 429, str(error), {"Retry-After": str(error.seconds)})
    if isinstance(error, TemplateError):
        return failure(path, 400 if isinstance(error, ConversationError) else 500, f"{error.fault}.")
    return failure(path, 400, str(error), param=_param(str(error)))


def _param(words: str) -> str | None:
    """The field that a message names."""
    found = _NAMED.match(words)
    name = None if found is None else found["name"]
    return _FIELDS.get(name, name) if name is not None else None
