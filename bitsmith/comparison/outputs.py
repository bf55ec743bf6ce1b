"""Writes the files of a comparison, each whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from bitsmith.errors import FileError, UsageError, quoted

if TYPE_CHECKING:
    from bitsmith.comparison.result import Comparison

CARD = "README.md"
_PICTURE = 200_000  # bytes, about


@dataclass(frozen=True)
class Beside:
    """Outputs that are no reports. card, plots: folders; logits: a file, which the run itself writes"""

    card: str | Path | None = None
    plots: str | Path | None = None
    logits: str | Path | None = None


class Outputs:
    """The places of the outputs, claimed before the work begins, so that hours of it do not end in a wrong name.

    sources: files that the run reads
    Raises as `Reservation`, and UsageError if one file is named twice, if a folder is wanted where a file lies, or if
    charts are wanted and cannot be drawn.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        beside: Beside = Beside(),
        *,
        sources: Sequence[Path] = (),
        force: bool = False,
    ) -> None:
        self._force = force
        self._reports = [_place(Path(path), "--out", force) for path in paths]
        for place in self._reports:
            _check(place.target)
        if beside.card is not None:
            self._reports.append(_place(_folder(beside.card, "--card") / CARD, "--card", force))
        self._pictures: dict[str, Destination] = {}
        if beside.plots is not None:
            from bitsmith.comparison.charts import PICTURES, require_charts

            require_charts()
            folder = _folder(beside.plots, "--plots")
            self._pictures = {name: _place(folder / name, "--plots", force) for name in PICTURES}
        places = [*self._reports, *self._pictures.values()]
        logits = [] if beside.logits is None else [_place(Path(beside.logits), "--write-logits", force)]
        self._logits = [place.target for place in logits]
        _check_apart([*places, *logits])
        Reservation(logits, sources=sources, force=force).release()  # the run takes it again, with its size
        self._reservation = Reservation(places, sources=sources, force=force)

    def write(self, found: Comparison) -> list[Path]:
        """Write all of them, the reports first. Returns their paths, with that of the logits."""
        for place in self._reports:
            self._write(place, contents(found, place.target))
        written = [place.target for place in self._reports]
        for path in [path for path in written if path.name == CARD]:
            written += _write_results(found, path.parent, self._force)
        written += self._logits
        if self._pictures:
            from bitsmith.comparison.charts import pictures

            for name, data in pictures(found):
                self._write(self._pictures[name], data)
                written.append(self._pictures[name].target)
        return written

    def _write(self, place: Destination, data: bytes) -> None:
        layout = FileLayout(place.target.name, data, (), len(data))
        with OutputFiles(replace(place, layouts=[layout]), self._reservation) as output:
            output.commit([layout])

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
    place = Destination(followed(path, force=force), [layout], option="--card")
    with Reservation([place], force=force) as reservation, OutputFiles(place, reservation) as output:
        output.commit([layout])
    return [path]


def _place(path: Path, option: str, force: bool) -> Destination:
    path = followed(path, force=force)
    return Destination(path, [FileLayout(path.name, b"", (), _about(path, option))], option=option)


def _about(path: Path, option: str) -> int:
    """About how many bytes a file will have: the script of the charts is most of a page."""
    if option == "--plots":
        return _PICTURE
    return 1_200_000 if path.suffix.lower() == ".html" else 20_000


def _folder(path: str | Path, option: str) -> Path:
    """The folder, made if it is missing."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{option}={quoted(path)}: it is a file, not a folder; name a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"{option}={quoted(path)}: the folder cannot be made ({error.strerror or error}); name another one."
        ) from error
    return folder


def _check_apart(places: Sequence[Destination]) -> None:
    """Raise UsageError if two outputs are one file."""
    seen: dict[str, str] = {}
    for place in places:
        real = os.path.realpath(place.target)
        if real in seen:
            first = seen[real]
            twice = f"{first} twice" if first == place.option else f"{first} and {place.option}"
            raise UsageError(f"{place.target} is named by {twice}; give every output a name of its own.")
        seen[real] = place.option


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
