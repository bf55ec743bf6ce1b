"""`bitsmith bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.cli.command import command, model_argument, option
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import as_json, quiet, runtime
from bitsmith.cli.say import print_json, warn

if TYPE_CHECKING:
    from bitsmith.evaluation.speed import Speed


@command("bench")
@model_argument("The model to measure: any model name or file.")
@option("--prompt", type=int, help="Tokens of a prompt; 0: none; default: 512, or the model's context if less.")
@option("--gen", type=int, help="Tokens to generate; 0: none; default: 128, or the model's context if less.")
@option("--repeat", type=int, default=5, help="Number of measurements of each, after a warm-up.")
@runtime
@quiet
@as_json
def bench(
    model: str,
    prompt: int | None,
    gen: int | None,
    repeat: int,
    threads: int | None,
    kernel: str | None,
    cache: str,
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
            threads=threads,
            kernel=kernel,
            cache_type=cache,
            revision=revision,
            report=report,
        )
    warn(result.warnings)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)


def _print(result: Speed) -> None:
    from rich.table import Table

    from bitsmith.cli.drawing import human_bytes, human_seconds, stdout

    console = stdout()
    plural = "" if result.threads == 1 else "s"
    console.print(f"{result.model}, {result.threads} thread{plural}", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "tokens", "tokens/s", "deviation", "slowest", "fastest"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, rate in (("prompt", result.prompt), ("generation", result.generation)):
        if rate is not None:
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
