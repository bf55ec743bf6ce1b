"""`bitsmith inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitsmith.cli.command import command, flag, model_argument
from bitsmith.cli.options import as_json, quiet, revision
from bitsmith.cli.say import print_json

if TYPE_CHECKING:
    from bitsmith.models.inspection import Inspection


@command("inspect")
@model_argument("The file or model to look at.")
@flag("--verify", help="Decode everything; check that values are finite and hashes match.")
@revision
@quiet
@as_json
@click.pass_context
def inspect(ctx: click.Context, model: str, verify: bool, revision: str | None, quiet: bool, as_json: bool) -> None:
    """Show what is in a file: metadata, types by tensor, sizes, bits per weight."""
    from bitsmith import api
    from bitsmith.cli.drawing import progress_bar

    with progress_bar(quiet) as report:
        result = api.inspect(model, verify=verify, revision=revision, report=report)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)
    if result.problems:
        ctx.exit(1)


def _print(result: Inspection) -> None:
    from rich.table import Table

    from bitsmith.cli.drawing import cells, stderr, stdout

    console = stdout()
    for key, value in result.metadata.items():
        console.print(f"{key} = {value}", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    further = [*(["input"] if result.rounds_inputs else []), *(["check"] if result.verified else [])]
    for heading in ("tensor", "shape", "type", "bytes", "bits/weight", *further):
        table.add_column(heading, justify="right" if heading in ("shape", "bytes", "bits/weight") else "left")
    for row in result.rows():
        table.add_row(*cells(row))
    console.print(table)
    console.print(result.summary(), markup=False, soft_wrap=True)
    for problem in result.problems:
        stderr().print(f"Problem: {problem}", style="red", markup=False, soft_wrap=True)
