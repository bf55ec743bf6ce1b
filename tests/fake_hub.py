"""A hub on this machine: as much of the Hugging Face hub as huggingface_hub asks for, over HTTP."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_AT_ONCE = 40 << 20  # bytes; a larger answer stops here until the test releases it
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as huggingface_hub asks for; counts the bytes of files it gives."""

    folder: Path
    given: int
    released: threading.Event  # once set, large answers are given whole, not only their first bytes

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        kind = type(self)
        if self.path.startswith("/api/models/owner/name"):
            if "/tree/" in self.path:
                files = [(name, (kind.folder / name).stat().st_size) for name in self._names()]
                tree = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in files]
                return self._send(200, json.dumps(tree).encode(), body, {})
            names = [{"rfilename": name} for name in self._names()]
            return self._send(
                200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": names}).encode(), body, {}
            )
        prefix = "/owner/name/resolve/"
        name = self.path.removeprefix(prefix).partition("/")[2].partition("?")[0]
        file = kind.folder / name
        if not self.path.startswith(prefix) or not file.is_file():
            code = "EntryNotFound" if self.path.startswith("/owner/name") else "RepoNotFound"
            return self._send(404, b"", body, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
        data = file.read_bytes()
        headers = {"ETag": f'"{len(data)}-{name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted and body:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            kind.given += len(part)
            return self._send(206, part, body, headers)
        kind.given += len(data) if body else 0
        return self._send(200, data, body, headers)

    def _names(self) -> list[str]:
        folder = type(self).folder
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            with suppress(ConnectionError):  # the other side was interrupted
                self.wfile.write(data[:_AT_ONCE])
                if len(data) > _AT_ONCE and not type(self).released.wait(60):
                    return
                self.wfile.write(data[_AT_ONCE:])


@contextmanager
def serving(tmp_path: Path) -> Iterator[tuple[type[Hub], dict[str, str]]]:
    """A hub that serves `tmp_path / "served"` as owner/name, and the environment of a program that uses it."""
    handler = type("Handler", (Hub,), {"folder": tmp_path / "served", "given": 0, "released": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.folder.mkdir()
    env = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
    }
    env.pop("HF_HUB_OFFLINE", None)
    yield handler, env
    handler.released.set()
    server.shutdown()
