"""Many clients that come, go and misbehave: every answer must be the one that the request gets alone.

    python bench/soak.py [MODEL] [--requests 1000] [--clients 32]

Starts `bitsmith serve MODEL` (the built-in model by default). Clients ask at temperature 0 for completions and chats,
whole and streamed; some go away in the middle, some read slowly, some send broken bodies or prompts that are too long.
Prints how many answers of each kind there were, how many differ from the answer alone, and the server's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np

PORT = 18232
URL = f"http://127.0.0.1:{PORT}"
OPENINGS = ("The whale", "A ship that sails", "It was the best of times", "Call me", "In the beginning", "Once upon")
KINDS = ("whole", "stream", "chat", "slow", "leave", "broken", "long", "unknown")
SHARES = (0.3, 0.25, 0.15, 0.05, 0.1, 0.05, 0.05, 0.05)


def body(text: str, tokens: int, *, stream: bool) -> dict[str, Any]:
    """A request for a completion."""
    return {"prompt": text, "max_tokens": tokens, "temperature": 0, "stream": stream}


async def read(answer: httpx.Response, *, slowly: bool = False, leave_after: int | None = None) -> str:
    """The text of a streamed completion."""
    text, events = "", 0
    async for line in answer.aiter_lines():
        if not line.startswith("data: {"):
            continue
        text += json.loads(line[6:])["choices"][0]["text"]
        events += 1
        if leave_after is not None and events >= leave_after:
            break
        if slowly:
            await asyncio.sleep(0.05)
    return text


async def ask(http: httpx.AsyncClient, kind: str, text: str, tokens: int) -> tuple[int, str]:
    """Status and text of one request."""
    if kind == "broken":
        found = await http.post(
            "/v1/completions", content=b'{"prompt": "x', headers={"content-type": "application/json"}
        )
        return found.status_code, ""
    if kind == "long":
        found = await http.post("/v1/completions", json=body(text * 2000, tokens, stream=False))
        return found.status_code, ""
    if kind == "unknown":
        found = await http.post("/v1/completions", json=body(text, tokens, stream=False) | {"frobnicate": 1})
        return found.status_code, ""
    if kind == "chat":
        asked = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0}
        found = await http.post("/v1/chat/completions", json=asked)
        return found.status_code, found.json()["choices"][0]["message"]["content"] if found.is_success else ""
    if kind == "whole":
        found = await http.post("/v1/completions", json=body(text, tokens, stream=False))
        return found.status_code, found.json()["choices"][0]["text"] if found.is_success else ""
    async with http.stream("POST", "/v1/completions", json=body(text, tokens, stream=True)) as answer:
        if not answer.is_success:
            return answer.status_code, ""
        leave = 2 if kind == "leave" else None
        return answer.status_code, await read(answer, slowly=kind == "slow", leave_after=leave)


Jobs = asyncio.Queue[tuple[str, str, int]]


async def client(jobs: Jobs, alone: dict[tuple[str, str], str], seen: Counter[str]) -> None:
    """Take requests until there are none."""
    async with httpx.AsyncClient(base_url=URL, timeout=300) as http:
        while not jobs.empty():
            kind, text, tokens = jobs.get_nowait()
            status, found = await ask(http, kind, text, tokens)
            seen[f"{kind}: {status}"] += 1
            if status == 200:
                whole = alone["chat" if kind == "chat" else "text", text]
                seen["differ"] += not whole.startswith(found)
                seen["empty"] += not found


async def soak(args: argparse.Namespace, process: subprocess.Popen[bytes]) -> None:
    """All requests, and the server's memory before and after."""
    alone = {}
    async with httpx.AsyncClient(base_url=URL, timeout=300) as http:
        for text in OPENINGS:
            alone["text", text] = (await ask(http, "whole", text, 24))[1]
            alone["chat", text] = (await ask(http, "chat", text, 24))[1]
    draw = np.random.default_rng(0)
    seen: Counter[str] = Counter()
    for part in range(4):
        jobs = Jobs()
        for _ in range(args.requests // 4):
            kind = str(draw.choice(KINDS, p=SHARES))
            jobs.put_nowait((kind, str(draw.choice(OPENINGS)), int(draw.integers(1, 25))))
        await asyncio.gather(*(client(jobs, alone, seen) for _ in range(args.clients)))
        print(f"after {(part + 1) * args.requests // 4:,} requests: {memory(process):.1f} MB", flush=True)
    health = httpx.get(f"{URL}/health").json()
    print(dict(sorted(seen.items())), health)


def memory(process: subprocess.Popen[bytes]) -> float:
    """Memory of a process in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmRSS"))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="reference")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=32)
    args = parser.parse_args()
    words = [sys.executable, "-m", "bitsmith", "serve", args.model, "--port", str(PORT), "--context", "512"]
    process = subprocess.Popen([*words, "--parallel", "8", "--queue", "24"])
    try:
        for _ in range(300):
            try:
                httpx.get(f"{URL}/health")
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        asyncio.run(soak(args, process))
    finally:
        process.terminate()
        print("exit code", process.wait(20))


if __name__ == "__main__":
    main()
