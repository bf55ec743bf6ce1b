"""How many tokens a second a server gives 1 to 16 clients: bitsmith's beside llama.cpp's, same file, same client.

    python bench/serve.py FILE.gguf [--streams 1 4 8] [--tokens 64] [--prompt 128] [--threads 2]

All clients ask at the same time, one request after the other, and read answers as streams. llama.cpp's server is the
one in the package xllamacpp. Each server runs alone. The table shows all clients' tokens a second together: of prompts
(one token is answered), of generation (prompts have four tokens), and of answers to whole prompts, with the seconds to
their first tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

LLAMA = """
import sys, time, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port, p.n_parallel, p.n_ctx = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[5])
p.n_gpu_layers = 0
server = xllamacpp.Server(p)
while True:
    time.sleep(1)
"""


@dataclass
class Seen:
    """What one client saw. Seconds to first tokens, and all tokens."""

    first: list[float] = field(default_factory=list)
    tokens: int = 0


@contextmanager
def server(name: str, args: argparse.Namespace, streams: int) -> Iterator[subprocess.Popen[bytes]]:
    """A running server."""
    room = args.prompt + args.tokens + 16
    if name == "bitsmith":
        words = [sys.executable, "-m", "bitsmith", "serve", str(args.file), "--port", str(args.port)]
        words += ["--parallel", str(streams), "--context", str(room), "--threads", str(args.threads)]
        words += ["--kernel", args.kernel]
    else:
        words = [sys.executable, "-c", LLAMA, str(args.file), str(args.port), str(streams), str(room * streams)]
        words.append(str(args.threads))
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{args.port}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


async def client(number: int, args: argparse.Namespace, prompt: int, tokens: int, seen: Seen) -> None:
    """Ask `--requests` times, each time something else."""
    draw = np.random.default_rng([number, prompt])
    for _ in range(args.requests):
        async with httpx.AsyncClient(timeout=None) as http:  # anew: llama.cpp's closes connections behind answers
            ids = [int(token) for token in draw.integers(100, 4000, prompt)]
            body = {"prompt": ids, "max_tokens": tokens, "temperature": 0, "stream": True, "model": "x"}
            body |= {"logit_bias": {}, "stream_options": {"include_usage": True}}
            started = time.perf_counter()
            first = None
            async with http.stream("POST", f"http://127.0.0.1:{args.port}/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if first is None and event.get("choices"):
                        first = time.perf_counter() - started
                    if event.get("usage"):
                        seen.tokens += event["usage"]["completion_tokens"]
            seen.first.append(first or 0.0)


async def together(args: argparse.Namespace, streams: int, prompt: int, tokens: int) -> tuple[float, int, np.ndarray]:
    """Seconds, tokens of all answers, and seconds to the first tokens."""
    seen = [Seen() for _ in range(streams)]
    started = time.perf_counter()
    await asyncio.gather(*(client(number, args, prompt, tokens, each) for number, each in enumerate(seen)))
    seconds = time.perf_counter() - started
    return seconds, sum(each.tokens for each in seen), np.array([first for each in seen for first in each.first])


async def measured(args: argparse.Namespace, streams: int) -> list[str]:
    """The figures of one row of the table."""
    await together(args, streams, 16, 4)  # warm
    seconds, _, _ = await together(args, streams, args.prompt, 1)
    prompts = streams * args.requests * args.prompt / seconds
    seconds, tokens, _ = await together(args, streams, 4, args.tokens)
    generation = tokens / seconds
    seconds, tokens, firsts = await together(args, streams, args.prompt + 1, args.tokens)
    found = [prompts, generation, tokens / seconds]
    return [f"{rate:.0f}" for rate in found] + [f"{np.median(firsts):.2f}", f"{np.quantile(firsts, 0.99):.2f}"]


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def peak(process: subprocess.Popen[bytes]) -> float:
    """Peak memory of a process in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--requests", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kernel", default="int16")
    args = parser.parse_args()
    headings = ("server", "streams", "prompts, tokens/s", "generation", "both", "first token, median s", "p99 s")
    table = Table(*headings, "peak MB", box=None)
    for streams in args.streams:
        for name in ("bitsmith", "llama.cpp"):
            args.port = _free_port()
            with server(name, args, streams) as process:
                row = (name, str(streams), *asyncio.run(measured(args, streams)), f"{peak(process):.0f}")
            print(*row, file=sys.stderr, flush=True)
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
