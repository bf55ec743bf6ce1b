"""Writes the files of a comparison, each whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bitsmith.comparison.card import card, eval_results
from bitsmith.comparison.config import REPORTS
from bitsmith.comparison.table import to_csv
from bitsmith.containers.destination import Destination, followed
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.output import OutputFiles
from bitsmith.containers.reservation import Reservation
from bitsmith.errors import UsageError, quoted

if TYPE_CHECKING:
    from bitsmith.comparison.result import Comparison

CARD = "README.md"


class Outputs:
    """The places of the outputs, claimed before the work begins, so that hours of it do not end in a wrong name.

    sources: files that the run reads
    Raises as `Reservation`, and UsageError if a page is wanted and its charts cannot be drawn.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        card: str | Path | None = None,
        sources: Sequence[Path] = (),
        force: bool = False,
    ) -> None:
        cards = []
        if card is not None:
            Path(card).mkdir(parents=True, exist_ok=True)
            cards.append(Path(card) / CARD)
        self._force = force
        self._paths = [followed(Path(path), force=force) for path in (*paths, *cards)]
        for path in self._paths:
            _check(path)
        self._places = [Destination(path, [FileLayout(path.name, b"", (), _about(path))]) for path in self._paths]
        self._reservation = Reservation(self._places, sources=sources, force=force)

    def write(self, found: Comparison) -> list[Path]:
        """Write all of them. Returns their paths."""
        for place in self._places:
            data = contents(found, place.target)
            layout = FileLayout(place.target.name, data, (), len(data))
            with OutputFiles(replace(place, layouts=[layout]), self._reservation) as output:
                output.commit([layout])
        cards = [path.parent for path in self._paths if path.name == CARD]
        return [*self._paths, *(path for folder in cards for path in _write_results(found, folder, self._force))]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reservation.release()


def _write_results(found: Comparison, folder: Path, force: bool) -> list[Path]:
    """`.eval_results/` beside a card of one file, if it has results of lm-eval."""
    text = eval_results(found.rows[0]) if len(found.rows) == 1 else ""
    if not text:
        return []
    path = folder / ".eval_results" / "bitsmith.yaml"
    path.parent.mkdir(exist_ok=True)
    layout = FileLayout(path.name, text.encode(), (), len(text.encode()))
    place = Destination(followed(path, force=force), [layout])
    with Reservation([place], force=force) as reservation, OutputFiles(place, reservation) as output:
        output.commit([layout])
    return [path]


def _about(path: Path) -> int:
    """About how many bytes a file will have: the script of the charts is most of a page."""
    return 1_200_000 if path.suffix.lower() == ".html" else 20_000


def _check(path: Path) -> None:
    suffix = path.suffix.lower()
    if path.name == CARD:
        return
    if suffix not in REPORTS:
        raise UsageError(f"--out={quoted(path)}: expected a name that ends in {', '.join(REPORTS)}.")
    if suffix == ".html":
        from bitsmith.comparison.charts import require_charts

        require_charts()


def contents(found: Comparison, path: Path) -> bytes:
    """What a file with this name holds."""
    suffix = path.suffix.lower()
    if path.name == CARD:
        return card(found, found.conditions.base).encode()
    if suffix == ".csv":
        return to_csv(found).encode()
    if suffix == ".json":
        return (json.dumps(found.to_dict(), indent=2) + "\n").encode()
    from bitsmith.comparison.page import page

    return page(found).encode()


def write_report(found: Comparison, path: str | Path, *, force: bool) -> Path:
    """Write one file; see `Comparison.report`."""
    with Outputs([path], force=force) as outputs:
        return outputs.write(found)[0]
