"""`bitsmith compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitsmith.cli.command import Argument, command, config_options, model_argument
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import as_json, quiet
from bitsmith.cli.say import Interrupted, print_json, warn
from bitsmith.comparison.config import CompareConfig

if TYPE_CHECKING:
    from bitsmith.comparison.expected import Expected
    from bitsmith.comparison.result import Comparison, Failure


@command("compare")
@model_argument('The original: a Hugging Face folder, a 16-bit GGUF file, a hub id, or "reference".')
@click.argument("files", cls=Argument, nargs=-1, type=click.Path(), help="Quantized files and folders of any tool.")
@config_options(CompareConfig)
@quiet
@as_json
def compare(config: CompareConfig, model: str, files: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Compare quantized files of one model on the same tokens: what each lost, and which to take."""
    from bitsmith.cli.drawing import progress_bar
    from bitsmith.comparison.running import Events, compare_and_write

    note_missing_core()
    measured: list[str] = []

    def plan(expected: Expected) -> None:
        warn(expected.lines(), before="Plan")

    def failure(failed: Failure) -> None:
        warn([f"{failed.name} is left out: {failed.reason}"])

    try:
        with progress_bar(quiet) as report:
            events = Events(report, None if quiet else plan, failure, measured.append)
            result, written = compare_and_write(model, files, config, events)
    except KeyboardInterrupt as stopped:
        many = "candidate" if len(measured) == 1 else "candidates"
        kept = f"{len(measured)} {many} measured and kept; the same command goes on with the others"
        raise Interrupted(kept) from stopped
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)
    warn([f"wrote {path}" for path in written], before="Note")
    if result.failures:
        click.get_current_context().exit(1)


def _print(result: Comparison) -> None:
    from rich.table import Table

    from bitsmith.cli.drawing import PrintableConsole, stdout
    from bitsmith.cli.drawing import cells as drawn
    from bitsmith.comparison.table import cells, headings

    console = stdout()
    if not console.is_terminal:
        console = PrintableConsole(highlight=False, width=240)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings(result)):
        table.add_column(heading, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    for row in cells(result):
        table.add_row(*drawn(row))
    console.print(result.verdict, markup=False, soft_wrap=True, style="bold")
    console.print()
    console.print(table)
    for line in result.lines():
        console.print(line, markup=False, soft_wrap=True)
