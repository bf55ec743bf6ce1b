"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from bitsmith.cli.command import flag, option
from bitsmith.errors import UsageError
from bitsmith.system.options import option as declared

F = TypeVar("F", bound=Callable[..., Any])
_KERNEL = (
    "What computes: int16 (C++, packed weights, inputs rounded to 15 bits), int8 (those of prompts to int8: half the "
    "time for a prompt), exact (C++, nothing rounded), torch; default: {default} if the C++ core can run the model."
)
_THREADS = "Number of threads; default: one per core."
_CACHE = "Type of stored keys and values: f16, q8_0 (half the memory) or f32; only for --kernel int16 or int8."
_INPUTS = (
    "How inputs of linear layers are rounded: none, int8, fp8, llm.int8 or llm.int8:THRESHOLD; default: as the file "
    "says."
)
_COMPUTE = (
    "Type of products, float32, bfloat16 or float16; weights stay stored as they are; default: what the kernel does."
)
_ADAPTER = "A folder with an adapter (LoRA) in PEFT's layout, trained on this model."
_REVISION = "Branch, tag or commit of a model of the hub."

threads = option("--threads", type=int, group="Machine", help=_THREADS)
kernel = option("--kernel", metavar="NAME", group="Machine", help=_KERNEL.format(default="int16"))
exact_kernel = option("--kernel", metavar="NAME", group="Machine", help=_KERNEL.format(default="exact"))
cache = option("--cache", default="f16", metavar="TYPE", group="Machine", help=_CACHE)
inputs = option("--inputs", metavar="NAME", group="Machine", help=_INPUTS)
compute_dtype = option("--compute-dtype", metavar="TYPE", group="Machine", help=_COMPUTE)
adapter = option("--adapter", type=click.Path(), metavar="DIR", group="Source", help=_ADAPTER)
revision = option("--revision", metavar="NAME", group="Source", help=_REVISION)
quiet = flag("--quiet", "-q", group="Output", help="Show no progress.")
as_json = flag("--json", "as_json", group="Output", help="Print the result as JSON.")


def only_one(to: tuple[str, ...], command: str) -> str:
    """The target of a command that makes one output. Raises UsageError for several."""
    if len(to) > 1:
        raise UsageError(f"--to is given several times; {command} makes one output. Give one, and run it again.")
    return to[0]


@dataclass(frozen=True)
class LoadingOptions:
    """How `run` and `chat` load a model."""

    context: int | None = declared(
        None, "-c", group="Machine", help="Tokens of prompt and text together, at most; default: the model's context."
    )
    threads: int | None = declared(None, group="Machine", help=_THREADS)
    kernel: str | None = declared(None, group="Machine", metavar="NAME", help=_KERNEL.format(default="int16"))
    cache_type: str = declared("f16", "--cache", group="Machine", metavar="TYPE", help=_CACHE)
    inputs: str | None = declared(None, group="Machine", metavar="NAME", help=_INPUTS)
    compute_dtype: str | None = declared(None, group="Machine", metavar="TYPE", help=_COMPUTE)
    adapter: str | Path | None = declared(None, group="Source", metavar="DIR", help=_ADAPTER)
    revision: str | None = declared(None, group="Source", metavar="NAME", help=_REVISION)


def runtime(function: F) -> F:
    """All options of loading a model to run it."""
    return revision(threads(kernel(cache(inputs(compute_dtype(function))))))


def no_short_t(function: Callable[..., None]) -> Callable[..., None]:
    """Answer -t, which means threads in some programs and temperature in others, with both long names."""

    def refuse(ctx: click.Context, _option: click.Parameter, value: str | None) -> None:
        if value is not None and not ctx.resilient_parsing:
            raise click.UsageError("-t could mean two things: write --threads N or --temperature X.", ctx)

    hidden: Callable[..., None] = click.option("-t", hidden=True, expose_value=False, callback=refuse)(function)
    return hidden


def token_limit(wanted: int) -> int | None:
    """The value of -n: None for -1, no limit. Raises UsageError for 0 and other negative numbers."""
    if wanted < 1 and wanted != -1:
        raise UsageError(f"-n {wanted}: give 1 or more, or -1 for as many as the context holds.")
    return None if wanted == -1 else wanted
