"""llama.cpp's server: the program `llama-server`, or the one inside of the package xllamacpp, asked over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

_START_SECONDS = 300
_LONG = "--"  # begins the flags of the program


class Probe:
    """A running server and its address."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.server: Any = None
        self.found: dict[str, str] = {}
        if request.get("program"):
            self.address = self._start_program(request)
        else:
            self.address = self._start_package(request)
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                if self._ask("/health", None).get("status") == "ok":
                    return
            except (urllib.error.URLError, ConnectionError):
                pass
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"llama-server ended with code {self.process.returncode}")
            if time.monotonic() > until:
                raise RuntimeError(f"llama-server did not answer within {_START_SECONDS} s")
            time.sleep(0.2)

    def _start_program(self, request: dict[str, Any]) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = [f"{_LONG}host", "127.0.0.1", f"{_LONG}port", str(port), f"{_LONG}jinja", f"{_LONG}no-webui"]
        options += ["-c", str(request["context"]), "-np", "1", "-t", str(request["threads"])]
        self.process = subprocess.Popen([request["program"], "-m", request["path"], *options], stdout=2)
        return f"http://127.0.0.1:{port}"

    def _start_package(self, request: dict[str, Any]) -> str:
        from importlib.metadata import version

        import xllamacpp

        params: Any = xllamacpp.CommonParams()
        params.model.path = request["path"]
        params.n_ctx = request["context"]
        params.n_parallel = 1
        params.cpuparams.n_threads = request["threads"]
        params.use_jinja = True
        params.warmup = False
        self.found = {"xllamacpp": version("xllamacpp")}
        self.server = xllamacpp.Server(params)
        return str(self.server.listening_address)

    def versions(self) -> dict[str, str]:
        """Versions of what computes."""
        build = str(self._ask("/props", None).get("build_info", "unknown"))
        known = "unknown" not in build or not self.found  # the package has its own version, and may know no other
        return {**self.found, **({"llama.cpp": build} if known else {})}

    def chat(self, messages: list[Any], tools: list[Any] | None) -> dict[str, Any]:
        """The conversation as text, and its token ids."""
        asked: dict[str, Any] = {"messages": messages}
        text = self._ask("/apply-template", asked | ({"tools": tools} if tools else {}))["prompt"]
        ids = self._ask("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]
        return {"text": text, "ids": ids}

    def scores(self, ids: list[int], first: int, top: int) -> list[dict[str, float]]:
        """Log probabilities of the likeliest next tokens after positions first - 1 and on, by token id."""
        found = []
        for count in range(first, len(ids) + 1):
            made = self._complete(ids[:count], 1, n_probs=top)
            listed = made["completion_probabilities"][0]["top_logprobs"]
            found.append({str(each["id"]): each["logprob"] for each in listed})
        return found

    def greedy(self, ids: list[int], new: int) -> list[int]:
        """The likeliest tokens, one after the other."""
        return [int(token) for token in self._complete(ids, new, return_tokens=True)["tokens"]]

    def tool_call(self, messages: list[Any], tools: list[Any]) -> dict[str, Any]:
        """The calls that the server finds in an answer, where it asks for one; its grammar may force it."""
        asked = {"messages": messages, "tools": tools, "tool_choice": "required", "temperature": 0, "max_tokens": 256}
        message = self._ask("/v1/chat/completions", asked)["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        return {"calls": [each["function"] for each in calls], "content": message.get("content")}

    def close(self) -> None:
        """End the server."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def _complete(self, ids: list[int], new: int, **words: Any) -> dict[str, Any]:
        asked = {"prompt": ids, "n_predict": new, "temperature": 0, "cache_prompt": True, "samplers": ["temperature"]}
        return self._ask("/completion", {**asked, **words})

    def _ask(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_START_SECONDS) as reply:
                found: dict[str, Any] = json.loads(reply.read())
        except urllib.error.HTTPError as error:
            if path == "/health":
                return {}
            raise RuntimeError(f"{path}: {error.code} {error.read().decode(errors='replace')[:400]}") from error
        return found


os.environ.setdefault("NO_PROXY", "127.0.0.1")
