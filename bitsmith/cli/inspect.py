"""`bitsmith inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitsmith.cli.command import command, flag, model_argument
from bitsmith.cli.options import as_json, quiet, revision
from bitsmith.cli.say import print_json

if TYPE_CHECKING:
    from bitsmith.models.inspection import Inspection

_LISTED_KINDS = 300


@command("inspect")
@model_argument("The file or model to look at.")
@flag("--verify", help="Decode everything; check that values are finite and hashes match.")
@flag("--tensors", help="One line for each tensor; default: one for all layers' tensors of a kind.", group="Output")
@flag("--recipe", help="Print only how the file was made: the command and the recipe in it.", group="Output")
@revision
@quiet
@as_json
@click.pass_context
def inspect(
    ctx: click.Context,
    model: str,
    verify: bool,
    tensors: bool,
    recipe: bool,
    revision: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Show what is in a file: metadata, types by tensor, sizes, bits per weight.

    Long values are cut; --json prints all of them whole, and every tensor.
    """
    from bitsmith import api
    from bitsmith.cli.drawing import progress_bar

    with progress_bar(quiet) as report:
        result = api.inspect(model, verify=verify, revision=revision, report=report)
    if recipe:
        _print_recipe(result, as_json)
    elif as_json:
        print_json(result.to_dict())
    else:
        _print(result, tensors)
    _print_findings(result)
    if result.problems:
        ctx.exit(1)


def _print(result: Inspection, every: bool) -> None:
    from bitsmith.cli.drawing import plain_table

    for key, value in result.shown_metadata().items():
        click.echo(f"{key} = {value}")
    rows = result.rows() if every else result.grouped_rows()
    cut = rows if every else rows[:_LISTED_KINDS]
    click.echo(plain_table(result.headings, cut, right=("shape", "bytes", "bits/weight")))
    if len(cut) < len(rows):
        click.echo(f"... and {len(rows) - len(cut):,} more lines; --tensors prints all.")
    click.echo(result.summary())


def _print_recipe(result: Inspection, as_json: bool) -> None:
    """The commands that made the file, and its recipe. Raises FileError if the file has none."""
    from bitsmith.cli.drawing import clean
    from bitsmith.errors import FileError
    from bitsmith.pipeline.reproduce import commands_of

    if result.recipe is None:
        raise FileError(
            f"{result.path} has no manifest, so bitsmith did not make it; how it was made is not known."
            + (f" Its own files say: {result.quantization}." if result.quantization else "")
        )
    made = commands_of(result.recipe)
    if as_json:
        print_json({"commands": made, "recipe": dict(result.recipe)})
        return
    for line in made:
        click.echo(clean(line))
    print_json(dict(result.recipe))


def _print_findings(result: Inspection) -> None:
    if not (result.problems or result.notes):
        return
    from bitsmith.cli.drawing import stderr

    for note in result.notes:
        stderr().print(f"Note: {note}", markup=False, soft_wrap=True)
    for problem in result.problems:
        stderr().print(f"Problem: {problem}", style="red", markup=False, soft_wrap=True)
