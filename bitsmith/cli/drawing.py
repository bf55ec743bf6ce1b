"""Progress bars and numbers as a person reads them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from bitsmith.cli.progress_lines import progress_lines
from bitsmith.errors import printable
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.system.sizes import human_bytes as human_bytes  # for every command
from bitsmith.system.sizes import human_seconds as human_seconds

_WIDEST_CELL = 120  # characters
_STEADY = 24 * 3600.0  # seconds over which the speed is averaged: blocks of a large model take minutes each


class PrintableConsole(Console):
    """A console whose texts give the terminal no orders, whoever wrote them."""

    def print(self, *objects: Any, **words: Any) -> None:
        """See `rich.console.Console.print`; strings are made printable."""
        super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **words)


def stderr() -> Console:
    """The console for everything that is not the result."""
    return PrintableConsole(stderr=True, highlight=False)


def stdout() -> Console:
    """The console for results; as wide as its lines need where it is no terminal."""
    console = PrintableConsole(highlight=False)
    return console if console.is_terminal else PrintableConsole(highlight=False, width=140)


def cells(row: Iterable[str]) -> list[Text]:
    """A table's row as it stands: names from a file are neither markup nor orders to the terminal."""
    return [Text(clean(text)) for text in row]


def clean(text: str) -> str:
    """A name in one line that gives the terminal no orders."""
    return printable(text, keep="")


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()) -> str:
    """A table as text, one line a row. Unlike rich's tables, 20,000 rows take no time.

    right: headings of the columns that are aligned to the right
    """
    lines = [[_cell(text) for text in row] for row in (headings, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    ends = [heading in right for heading in headings]
    return "\n".join(
        "  ".join(
            text.rjust(width) if end else text.ljust(width) for text, width, end in zip(line, widths, ends, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(text: str) -> str:
    return clean(text if len(text) <= _WIDEST_CELL else f"{text[: _WIDEST_CELL - 3]}...")


@contextmanager
def progress_bar(quiet: bool = False, *, per_second: float = 10) -> Iterator[Report]:
    """A callback that draws one bar a stage on stderr, with the time left; where stderr is no terminal, lines.

    quiet: draw nothing
    per_second: how often it is drawn; drawing takes time from the work
    """
    console = stderr()
    if quiet:
        yield silent
        return
    if not console.is_terminal:
        with progress_lines() as report_lines:
            yield report_lines
        return
    bars = Bars(
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[detail]}", style="dim", markup=False),
        console=console,
        transient=True,
        refresh_per_second=per_second,
        speed_estimate_period=_STEADY,
    )
    tasks: dict[str, TaskID] = {}
    with bars:

        def report(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total, detail="")
            bars.update(
                tasks[progress.stage], completed=progress.done, total=progress.total, detail=clean(progress.detail[:48])
            )

        yield report
