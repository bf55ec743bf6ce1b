"""`bitsmith run`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import CacheType, Kernel, MinP, Revision, Seed, Temperature, Threads, TopK, TopP


def run(
    model: Annotated[str, typer.Argument(help="The model to run: any model name or file.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The text to continue; - or nothing reads standard input.")
    ] = None,
    tokens: Annotated[int, typer.Option("-n", "--max-tokens", help="Tokens to generate at most.", min=1)] = 128,
    temperature: Temperature = 0.8,
    top_k: TopK = 40,
    top_p: TopP = 0.95,
    min_p: MinP = 0.05,
    seed: Seed = None,
    threads: Threads = None,
    kernel: Kernel = None,
    cache: CacheType = "f16",
    revision: Revision = None,
) -> None:
    """Continue a text; the continuation is streamed to standard output."""
    from bitsmith import api
    from bitsmith.runtime.generate import Sampling

    note_missing_core()
    if prompt is None and sys.stdin.isatty():
        prompt = ""
    text = sys.stdin.read() if prompt is None or prompt == "-" else prompt
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    model_ = api.load(model, threads=threads, kernel=kernel, cache_type=cache, revision=revision)
    stream = model_.stream(text, max_tokens=tokens, sampling=sampling)
    try:
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
