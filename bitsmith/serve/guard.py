"""What every request passes first: the key, and the size of its body."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bitsmith.serve.failures import failure

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_OPEN = ("/", "/health")  # without a key


class _TooLargeError(Exception):
    """The body has more bytes than are allowed."""


class Guard:
    """An ASGI application around another one.

    key: that clients must give, as `Authorization: Bearer KEY` or `x-api-key: KEY`; None: all may ask
    most: bytes of a body
    """

    def __init__(self, app: App, *, key: str | None, most: int) -> None:
        self._app = app
        self._key = None if key is None else key.encode()
        self._most = most

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        headers = {name.lower(): value for name, value in scope["headers"]}
        if path not in _OPEN and not self._may(headers):
            words = "a key is needed: Authorization: Bearer KEY, as the server was started with --api-key."
            await failure(path, 401, words)(scope, receive, send)
            return
        too_large = failure(path, 413, f"the request has more than {self._most:,} bytes.")
        said = headers.get(b"content-length", b"0")
        if not said.isdigit() or int(said) > self._most:
            await too_large(scope, receive, send)
            return
        try:
            await self._app(scope, self._counted(receive), send)
        except _TooLargeError:
            await too_large(scope, receive, send)

    def _may(self, headers: dict[bytes, bytes]) -> bool:
        if self._key is None:
            return True
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(given, self._key)

    def _counted(self, receive: Receive) -> Receive:
        """Bodies without a length are counted as they come."""
        got = 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self._most:
                raise _TooLargeError
            return message

        return counted
