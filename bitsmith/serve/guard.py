"""What every request passes first: the name of the server, the key, and the size of its body."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

from bitsmith.serve.failures import failure
from bitsmith.serve.hosts import Hosts

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_OPEN = ("/", "/health")  # without a key


class Guard:
    """An ASGI application around another one.

    hosts: names that the server may be called by; None: any
    key: that clients must give, as `Authorization: Bearer KEY` or `x-api-key: KEY`; None: all may ask
    most: bytes of a body
    patience: seconds that a whole body may take
    """

    def __init__(
        self, app: App, *, key: str | None, most: int, patience: float = 30.0, hosts: Hosts | None = None
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._key = None if key is None else key.encode()
        self._most = most
        self._patience = patience

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        headers = {name.lower(): value for name, value in scope["headers"]}
        other = self._other_name(scope["headers"])
        if other is not None:
            words = (
                f"this server is not {other[:100]!r}; if it has that name, start it with `--allowed-host` and the name."
            )
            await failure(path, 403, words)(scope, receive, send)
            return
        if path not in _OPEN and not self._may(headers):
            await failure(path, 401, _key_words(path, headers))(scope, receive, send)
            return
        too_large = failure(path, 413, f"the request has more than {self._most:,} bytes.")
        said = headers.get(b"content-length", b"0")
        if not said.isdigit() or int(said) > self._most:
            await too_large(scope, receive, send)
            return
        body = _Counted(receive, send, self._most, self._patience)
        late = failure(path, 408, f"the rest of the request did not come within {self._patience:g} s.")
        try:
            await self._app(scope, body.receive, body.send)
        except ClientDisconnect:  # in the middle of its body, if it was not us who gave up
            pass
        finally:
            if body.given_up and not body.answered:
                await (late if body.late else too_large)(scope, receive, send)

    def _other_name(self, headers: list[tuple[bytes, bytes]]) -> str | None:
        """A name that a request calls the server by, and that is not the server's."""
        if self._hosts is None:
            return None
        return self._hosts.refused([value for name, value in headers if name.lower() == b"host"])

    def _may(self, headers: dict[bytes, bytes]) -> bool:
        if self._key is None:
            return True
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(given, self._key)


def _key_words(path: str, headers: dict[bytes, bytes]) -> str:
    """What to say where the key is not there, or another one; the header is that of the API."""
    header = "x-api-key: KEY" if path.startswith("/v1/messages") else "Authorization: Bearer KEY"
    if b"x-api-key" in headers or b"authorization" in headers:
        return f"this key is wrong; expected {header}, with the key that the server was started with."
    return f"a key is needed: {header}, as the server was started with `--api-key`."


class _Counted:
    """Counts a body as it comes. Once it is too large or late, the application hears that the client went away.

    given_up: whether it is; late: whether that is why; answered: whether the application had begun to answer before
    """

    def __init__(self, receive: Receive, send: Send, most: int, patience: float) -> None:
        self._receive = receive
        self._send = send
        self._left = most
        self._end = asyncio.get_running_loop().time() + patience
        self._whole = False
        self.given_up = self.late = self.answered = False

    async def receive(self) -> Message:
        """See ASGI."""
        try:
            async with asyncio.timeout_at(None if self._whole else self._end):
                message = await self._receive()
        except TimeoutError:
            self.given_up = self.late = True
            return {"type": "http.disconnect"}
        self._whole = not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.given_up = True
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if self.given_up and not self.answered:
            return
        self.answered = True
        await self._send(message)
