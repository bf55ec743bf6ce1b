"""`bitsmith plan --fit`: the front of a model, as a table or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitsmith.cli.say import print_json, warn

if TYPE_CHECKING:
    from bitsmith.pipeline.config import QuantizeConfig
    from bitsmith.pipeline.front import Front


def show_front(model: str, config: QuantizeConfig, *, to: str | None, plot: Path | None, as_json: bool) -> None:
    """Find and print it."""
    from bitsmith.cli.drawing import progress_bar
    from bitsmith.pipeline.front import draw, front
    from bitsmith.planner.figure import check_picture

    if plot is not None:
        check_picture(plot)
    with progress_bar(as_json) as report:
        found = front(model, config, to=to, report=report)
    if plot is not None:
        draw(found, plot)
        warn([f"wrote {plot}"], before="Note")
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: Front) -> None:
    from rich.table import Table

    from bitsmith.cli.drawing import clean, human_bytes, stdout

    if found.reason:
        warn([f"nothing fits {found.room}: {found.reason}"])
    console = stdout()
    console.print(f"{clean(found.model)}, {clean(found.room)}", style="bold", markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("types", "size", "bits", "expected loss", "fits"):
        table.add_column(heading, justify="left" if heading in ("types", "fits") else "right")
    own = found.chosen
    for each in found.sorted:
        style = "green" if each is own else "" if each.name == "" else "dim"
        cells = (human_bytes(each.nbytes), f"{each.bits_per_weight:.2f}", f"{each.loss:.4g}")
        table.add_row(
            each.name or ("for the budget" if each is own else "chosen by size"),
            *cells,
            "yes" if each.fits else "no",
            style=style,
        )
    console.print(table)
    console.print(
        "expected loss: mean KLD in nats a token, from costs that were measured on this model, as `quantize` says it. "
        "The file for the budget is the one that `quantize --fit` makes.",
        style="dim",
        soft_wrap=not console.is_terminal,
    )
