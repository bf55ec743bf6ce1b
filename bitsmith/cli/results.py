"""`bitsmith results`."""

from __future__ import annotations

from bitsmith.cli.command import command, option
from bitsmith.cli.options import as_json
from bitsmith.cli.say import print_json


@command("results")
@option("--model", metavar="TEXT", help="Only models whose name or hash contains TEXT.")
@option("--text", metavar="TEXT", help="Only texts whose name or hash contains TEXT.")
@option("--kind", metavar="NAME", help="Only one kind of measurement: scores, speed, tasks.")
@option("--csv", metavar="FILE", group="Output", help="Write them as CSV.")
@option("--ledger", metavar="FILE", group="Output", help="The ledger; default: in the user's data folder.")
@as_json
def results(
    model: str | None, text: str | None, kind: str | None, csv: str | None, ledger: str | None, as_json: bool
) -> None:
    """List what `compare` has measured and kept."""
    from bitsmith.cli.drawing import plain_table, stdout
    from bitsmith.comparison.kept import kept_records, shown_rows, write_csv

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
