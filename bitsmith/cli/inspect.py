"""`bitsmith inspect`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from bitsmith.cli.options import AsJson, Revision

if TYPE_CHECKING:
    from bitsmith.models.inspection import Inspection


def inspect(
    model: Annotated[str, typer.Argument(help="The file or model to look at.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Decode everything, check that it is finite and that hashes match.")
    ] = False,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Show what is in a file: metadata, types by tensor, sizes, bits per weight."""
    from bitsmith import api
    from bitsmith.cli.drawing import progress_bar

    with progress_bar() as report:
        result = api.inspect(model, verify=verify, revision=revision, report=report)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _print(result)
    if result.problems:
        raise typer.Exit(1)


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
