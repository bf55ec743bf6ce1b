"""`bitsmith eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.cli.command import command, model_argument, option
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import adapter, as_json, compute_dtype, exact_kernel, inputs, quiet, revision, threads
from bitsmith.cli.say import print_json, warn

if TYPE_CHECKING:
    from bitsmith.evaluation import Evaluation


@command("eval")
@model_argument("The model to measure: any model name or file.")
@option("--against", metavar="MODEL", help="The original; adds divergence and top-1 agreement.")
@option(
    "--text",
    multiple=True,
    metavar="SOURCE",
    help="A file of text, .jsonl, .json or .parquet, or owner/name[:FILE] of the hub; repeatable: texts are joined in "
    "order; default: a built-in one.",
)
@option("--context", "-c", type=int, default=512, help="Tokens per window.")
@option("--max-windows", type=int, help="Stop after N windows.")
@threads
@exact_kernel
@adapter
@inputs
@compute_dtype
@revision
@quiet
@as_json
def evaluate(
    model: str,
    against: str | None,
    text: tuple[str, ...],
    context: int,
    max_windows: int | None,
    threads: int | None,
    kernel: str | None,
    adapter: str | None,
    inputs: str | None,
    compute_dtype: str | None,
    revision: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure perplexity, and what a file lost against its original (KLD, top-1 agreement)."""
    from bitsmith import api
    from bitsmith.cli.drawing import progress_bar

    note_missing_core()
    with progress_bar(quiet) as report:
        result = api.evaluate(
            model,
            against=against,
            text=text,
            context=context,
            max_windows=max_windows,
            threads=threads,
            kernel=kernel,
            adapter=adapter,
            inputs=inputs,
            compute_dtype=compute_dtype,
            revision=revision,
            report=report,
        )
    warn(result.notes, before="Note")
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)


def _print(result: Evaluation) -> None:
    from bitsmith.cli.drawing import stdout

    console = stdout()
    for line in result.lines():
        console.print(line, markup=False, soft_wrap=True)
