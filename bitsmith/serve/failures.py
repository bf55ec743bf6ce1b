"""Errors in the forms that OpenAI's and Anthropic's clients understand."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from bitsmith.errors import BitsmithError
from bitsmith.serve.engine import BusyError

_ANTHROPIC = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
_ANTHROPIC |= {403: "permission_error"}
_ANTHROPIC |= {413: "request_too_large", 429: "rate_limit_error"}
_OPENAI = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def body(path: str, status: int, words: str) -> dict[str, Any]:
    """The body of an error's answer, in the form of the API that `path` belongs to."""
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": _ANTHROPIC.get(status, "api_error"), "message": words}}
    kind = _OPENAI.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": words, "type": kind, "param": None, "code": None}}


def failure(path: str, status: int, words: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer that says an error."""
    return JSONResponse(body(path, status, words), status, headers)


def of_error(path: str, error: BitsmithError) -> JSONResponse:
    """The answer for an error of ours: 429 if the queue is full, else the request is at fault."""
    if isinstance(error, BusyError):
        return failure(path, 429, str(error), {"Retry-After": str(error.seconds)})
    return failure(path, 400, str(error))
