"""Connections: how long a client may take for the head of a request, and how many there may be at a time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from bitsmith.serve.failures import body
from bitsmith.serve.guard import App

MOST = 512  # connections at a time
_FULL = json.dumps(body("/", 503, f"this server has its {MOST} connections; try again later.")).encode()
_ANSWER = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
_ANSWER += b"Content-Length: %d\r\n\r\n" % len(_FULL) + _FULL


def server_config(app: App, *, patience: float = 30.0, most: int = MOST, **words: Any) -> uvicorn.Config:
    """The configuration of the server.

    patience: seconds that the head of a request may take
    most: connections at a time; further ones get status 503
    words: further ones of `uvicorn.Config`
    """

    class Limited(_Connection):
        pass

    Limited.patience, Limited.most = patience, most
    return uvicorn.Config(app, http=Limited, ws="none", **words)


class _Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """One connection. While no request is being answered, a timer runs from the first byte that comes."""

    patience: float
    most: int

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._timer: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(_ANSWER)
            transport.close()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.patience, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
