"""`bitsmith run`."""

from __future__ import annotations

import sys

import click

from bitsmith.cli.command import command, model_argument, option
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import runtime, sampling


@command("run")
@model_argument("The model to run: any model name or file.")
@option("--prompt", "-p", help="The text to continue; without it, or with -, standard input is read.")
@option(
    "-n",
    "--max-tokens",
    "tokens",
    type=click.IntRange(1),
    default=128,
    metavar="N",
    help="Tokens to generate, at most.",
)
@sampling
@runtime
def run(
    model: str,
    prompt: str | None,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    threads: int | None,
    kernel: str | None,
    cache: str,
    revision: str | None,
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
