"""`bitsmith bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.cli.command import command, model_argument, option
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import as_json, quiet, runtime
from bitsmith.cli.say import print_json, warn
from bitsmith.errors import UsageError, quoted

if TYPE_CHECKING:
    from bitsmith.evaluation.speed import Speed


@command("bench")
@model_argument("The model to measure: any model name or file.")
@option("--prompt", type=int, help="Tokens of a prompt; 0: none; default: 512, or the model's context if less.")
@option("--gen", type=int, help="Tokens to generate; 0: none; default: 128, or the model's context if less.")
@option("--repeat", type=int, default=5, help="Number of measurements of each, after a warm-up.")
@option("--parallel", metavar="N,N", default="", help="Also generate so many texts together, such as 1,2,4,8.")
@option("--explain", is_flag=True, help="Also show what was chosen for this processor, and what the time was spent on.")
@runtime
@quiet
@as_json
def bench(
    model: str,
    prompt: int | None,
    gen: int | None,
    repeat: int,
    parallel: str,
    explain: bool,
    threads: int | None,
    kernel: str | None,
    cache: str,
    inputs: str | None,
    compute_dtype: str | None,
    revision: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure tokens per second of a prompt and of generation, as llama-bench counts them (pp512, tg128).

    It also measures the time to load, the peak memory, and how much of the memory's bandwidth generation uses.
    """
    from bitsmith import api
    from bitsmith.cli.drawing import progress_bar

    note_missing_core()
    with progress_bar(quiet, per_second=2) as report:
        result = api.bench(
            model,
            prompt=prompt,
            gen=gen,
            repeat=repeat,
            parallel=_counts(parallel),
            threads=threads,
            kernel=kernel,
            cache_type=cache,
            inputs=inputs,
            compute_dtype=compute_dtype,
            revision=revision,
            report=report,
        )
    warn(result.warnings)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)
        if explain:
            _explain(result)


def _counts(text: str) -> list[int]:
    """Numbers between commas. Raises UsageError for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--parallel={quoted(text)}: expected numbers between commas, such as 1,2,4,8.")
    return [int(part) for part in parts]


def _print(result: Speed) -> None:
    from rich.table import Table

    from bitsmith.cli.drawing import human_bytes, human_seconds, stdout

    console = stdout()
    plural = "" if result.threads == 1 else "s"
    console.print(f"{result.model}, {result.threads} thread{plural}", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "tokens", "tokens/s", "deviation", "slowest", "fastest"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, rate in result.rates:
        figures = (rate.mean, rate.deviation, min(rate.values), max(rate.values))
        table.add_row(name, str(rate.tokens), *(f"{figure:,.2f}" for figure in figures))
    console.print(table)
    console.print(
        f"loaded in {human_seconds(result.load_seconds)}; peak memory {human_bytes(result.peak_memory)}", soft_wrap=True
    )
    memory = f"{human_bytes(result.bandwidth)}/s that memory gives {result.threads} thread{plural}"
    read = f"{human_bytes(result.token_bytes)} of weights read for a token"
    if result.read_rate is not None:
        share = result.read_rate / result.bandwidth
        memory = f"{human_bytes(result.read_rate)}/s, {100 * share:.0f} % of the {memory}"
    console.print(f"{read}: {memory}", soft_wrap=True)


def _explain(result: Speed) -> None:
    """The processor, how products are taken, how each way of reading matrices did, and the parts of the time."""
    from rich.table import Table

    from bitsmith.cli.drawing import human_bytes, stdout
    from bitsmith.system.processor import processor_name

    console = stdout()
    console.print(f"\nprocessor: {processor_name()}", markup=False, soft_wrap=True)
    for name, rate in (("prompt", result.prompt), ("generation", result.generation)):
        if rate is not None and rate.parts:
            total = sum(rate.seconds)
            parts = [f"{part} {100 * seconds / total:.0f} %" for part, seconds in rate.parts.items()]
            outside = 100 * (1 - sum(rate.parts.values()) / total)
            console.print(f"time of {name}: {', '.join(parts)}, Python {outside:.0f} %", soft_wrap=True)
    choices = result.choices
    if choices is None:
        console.print("The C++ core does not run this model, so nothing was chosen.", soft_wrap=True)
        return
    console.print(f"instruction set: {choices.isa}; available: {', '.join(choices.isas)}", soft_wrap=True)
    console.print(f"products of prompts: {choices.prompts}", soft_wrap=True)
    for choice in choices.readings:
        kind = "float" if choice.kind == "floats" else choice.kind
        told = f"single rows times {kind} matrices: way {choice.chosen} ({choice.origin})"
        console.print(
            told + (f", measured on its matrices of {choice.layout}:" if choice.rates else ""), soft_wrap=True
        )
        if not choice.rates:
            continue
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("way", "bytes ahead, level 1", "level 2", "rows", "read in a second", ""):
            table.add_column(heading, justify="right")
        for i, (way, taken) in enumerate(zip(choices.ways, choice.rates, strict=True)):
            near, far, rows = way
            chosen = "chosen" if i == choice.chosen else ""
            together = str(rows) if choice.kind == "floats" else ""
            table.add_row(str(i), f"{near:,}", f"{far:,}", together, human_bytes(taken), chosen)
        console.print(table)
