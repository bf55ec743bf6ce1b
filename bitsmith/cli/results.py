"""`bitsmith results`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from bitsmith.cli.command import command, flag, option
from bitsmith.cli.options import as_json
from bitsmith.cli.say import print_json
from bitsmith.comparison.config import KINDS
from bitsmith.errors import UsageError

if TYPE_CHECKING:
    from bitsmith.comparison.cached import Cached


@command("results")
@option("--model", metavar="TEXT", help="Only models whose name or hash contains TEXT.")
@option("--text", metavar="TEXT", help="Only texts whose name or hash contains TEXT.")
@option("--kind", type=click.Choice(KINDS), help="Only one kind of measurement.")
@option("--csv", metavar="FILE", group="Output", help="Write them as CSV.")
@option("--ledger", metavar="FILE", group="Output", help="The ledger; default: in the user's data folder.")
@flag("--cache", group="Cache", help="List the files that `compare` made and keeps, and the original's predictions.")
@flag("--clear-cache", group="Cache", help="Remove them; measurements stay.")
@flag("--yes", "-y", group="Cache", help="Do not ask.")
@as_json
@click.pass_context
def results(
    ctx: click.Context,
    model: str | None,
    text: str | None,
    kind: str | None,
    csv: str | None,
    ledger: str | None,
    cache: bool,
    clear_cache: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """List what `compare` has measured and kept."""
    from bitsmith.cli.drawing import plain_table, stdout
    from bitsmith.comparison.kept import kept_records, shown_rows, write_csv

    if clear_cache:
        _clear(ctx, yes, as_json)
        return
    if cache:
        _list(as_json)
        return
    found = kept_records(ledger, model=model, text=text, kind=kind)
    if csv is not None:
        write_csv(found, csv)
    if as_json:
        print_json(found)
    elif found:
        headings, rows = shown_rows(found)
        stdout().print(plain_table(headings, rows, right=headings[4:]), markup=False, soft_wrap=True)
    else:
        stdout().print("nothing is kept that fits", markup=False)


def _list(as_json: bool) -> None:
    from bitsmith.cli.drawing import stdout
    from bitsmith.comparison.cached import list_cached

    found = list_cached()
    if as_json:
        print_json([each.to_dict() for each in found])
    else:
        stdout().print(_shown(found), markup=False, soft_wrap=True)


def _shown(found: list[Cached]) -> str:
    from bitsmith.cli.drawing import human_bytes, plain_table
    from bitsmith.comparison.cached import compare_folder

    if not found:
        return f"nothing is kept in {compare_folder()}"
    rows = [
        (each.kind, each.name, human_bytes(each.size), time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used)))
        for each in found
    ]
    table = plain_table(("kind", "name", "size", "written"), rows, right=("size",))
    return f"{table}\n{human_bytes(sum(each.size for each in found))} in {compare_folder()}"


def _clear(ctx: click.Context, yes: bool, as_json: bool) -> None:
    from bitsmith.cli.drawing import clean, human_bytes
    from bitsmith.cli.stored import asked
    from bitsmith.comparison.cached import clear, compare_folder, list_cached

    found = list_cached()
    total = human_bytes(sum(each.size for each in found))
    if found and not yes:
        if not asked():
            raise UsageError("nobody can be asked here; give --yes to clear the cache without a question.")
        click.echo(clean(_shown(found)), err=True)
        files = "file or folder" if len(found) == 1 else "files and folders"
        if not click.confirm(f"Remove {len(found)} {files} ({total})? The measurements stay.", err=True):
            click.echo("Nothing was removed.", err=True)
            ctx.exit(1)
    freed = clear(found)
    if as_json:
        print_json({"removed": [each.to_dict() for each in found], "bytes": freed})
    else:
        click.echo(f"Removed {total} from {compare_folder()}." if found else f"Nothing is kept in {compare_folder()}.")
