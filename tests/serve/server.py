"""A server of the reference model in this process, on a free port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsmith
from bitsmith.runtime.language_model import LanguageModel
from bitsmith.serve.engine import Engine, Limits


@dataclass(frozen=True)
class Running:
    """A running server. url: without a path"""

    url: str
    engine: Engine

    @property
    def model(self) -> LanguageModel:
        return self.engine.model


@contextmanager
def serving(
    limits: Limits | None = None,
    *,
    key: str | None = None,
    context: int = 512,
    model: str | Path = "reference",
    adapter: Path | None = None,
    patience: float = 30.0,
    allowed: Sequence[str] = (),
    connections: int = 512,
) -> Iterator[Running]:
    import uvicorn

    from bitsmith.serve.app import Served, make_app
    from bitsmith.serve.connection import server_config
    from bitsmith.serve.hosts import Hosts

    loaded = bitsmith.load(model, context=context, adapter=adapter)
    engine = Engine(loaded, limits or Limits(parallel=4))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    app = make_app(Served(engine, "reference", key, hosts=Hosts(allowed)), patience=patience)
    words: dict[str, Any] = {"log_level": "error", "timeout_graceful_shutdown": 1}
    config = server_config(app, patience=patience, most=connections, **words)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", engine)
    server.should_exit = True
    thread.join(10)
    engine.close()
    listening.close()
