"""`bitsmith clean`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitsmith.cli.command import Argument, command, flag
from bitsmith.cli.options import as_json
from bitsmith.cli.say import print_json

if TYPE_CHECKING:
    from bitsmith.work.leftovers import Leftover


@command("clean")
@click.argument(
    "folder",
    cls=Argument,
    type=click.Path(path_type=Path),
    default=Path("."),
    help="Folder to look into, two levels deep; default: the current one.",
)
@flag("--dry-run", group="Output", help="Only list what would be removed.")
@flag("--yes", "-y", help="Do not ask.")
@as_json
@click.pass_context
def clean(ctx: click.Context, folder: Path, dry_run: bool, yes: bool, as_json: bool) -> None:
    """List and remove what interrupted runs have left beside their outputs.

    What is removed cannot be continued any more: the same command starts from its beginning. What a run that lives
    uses is never removed.
    """
    from bitsmith.cli.drawing import human_bytes, stdout
    from bitsmith.cli.stored import asked
    from bitsmith.errors import UsageError
    from bitsmith.work.leftovers import find_leftovers, remove_leftovers

    found = find_leftovers(folder)
    free = [each for each in found if not each.in_use]
    if not as_json:
        _list(found, folder)
    if free and not dry_run and not yes:
        if not asked():
            raise UsageError(f"{folder}: nobody can be asked here; give --yes to remove it without a question.")
        if not click.confirm(f"Remove {human_bytes(sum(each.size for each in free))}?", err=True):
            click.echo("Nothing was removed.", err=True)
            ctx.exit(1)
    removed = [] if dry_run else remove_leftovers(free)
    if as_json:
        print_json([{**each.to_dict(), "removed": each in removed} for each in found])
    elif removed:
        stdout().print(f"removed: {human_bytes(sum(each.size for each in removed))} are free again")


def _list(found: list[Leftover], folder: Path) -> None:
    from bitsmith.cli.drawing import human_bytes, plain_table, stdout

    if not found:
        click.echo(f"No interrupted run has left anything in {folder}.", err=True)
        return
    rows = [
        (str(each.output), each.kind, human_bytes(each.size), _ago(each.used), each.what, "in use" * each.in_use)
        for each in found
    ]
    headings = ("output", "kind", "size", "age", "what for", "")
    stdout().print(plain_table(headings, rows, right=("size",)), markup=False, soft_wrap=True)


def _ago(then: float) -> str:
    import time

    from bitsmith.system.sizes import human_seconds

    return human_seconds(max(0.0, time.time() - then))
