"""`bitsmith eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import AsJson, ExactKernel, Revision, Threads

if TYPE_CHECKING:
    from bitsmith.evaluation import Evaluation


def evaluate(
    model: Annotated[str, typer.Argument(help="The model to measure: any model name or file.")],
    against: Annotated[
        str | None, typer.Option("--against", help="The original; adds divergence and top-1 agreement.")
    ] = None,
    text: Annotated[Path | None, typer.Option("--text", help="UTF-8 text; default: a built-in one.")] = None,
    context: Annotated[int, typer.Option("--context", "-c", help="Tokens in a window.")] = 512,
    max_windows: Annotated[int | None, typer.Option(help="Stop after this many windows.")] = None,
    threads: Threads = None,
    kernel: ExactKernel = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity, and what a file lost against its original (KLD, top-1 agreement)."""
    from bitsmith import api
    from bitsmith.cli.drawing import progress_bar

    note_missing_core()
    with progress_bar() as report:
        result = api.evaluate(
            model,
            against=against,
            text=text,
            context=context,
            max_windows=max_windows,
            threads=threads,
            kernel=kernel,
            revision=revision,
            report=report,
        )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _print(result)


def _print(result: Evaluation) -> None:
    from bitsmith.cli.drawing import stdout

    console = stdout()
    for line in result.lines():
        console.print(line, markup=False, soft_wrap=True)
