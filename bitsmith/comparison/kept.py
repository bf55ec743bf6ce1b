"""What the ledger holds, as records: chosen by words, listed, and written as CSV."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitsmith.comparison.ledger import Kept, Ledger, usual_ledger
from bitsmith.containers.destination import Destination, followed
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.output import OutputFiles
from bitsmith.containers.reservation import Reservation
from bitsmith.errors import FileError

_FIXED = ("created", "kind", "model", "text", "original", "definition", "version", "model_sha256", "text_sha256")


def kept_records(
    ledger: str | Path | None = None, *, model: str | None = None, text: str | None = None, kind: str | None = None
) -> list[dict[str, Any]]:
    """Measurements, the oldest first, each as a flat dictionary.

    model, text: parts of a name or of a hash
    Raises FileError if the named ledger does not exist or cannot be read.
    """
    path = usual_ledger() if ledger is None else Path(ledger).expanduser()
    if not path.is_file():
        if ledger is None:
            return []
        raise FileError(f"{path}: there is no such ledger; `bitsmith compare --ledger` makes one.")
    with Ledger(path) as opened:
        found = [_record(each) for each in opened.measurements(kind)]
    return [each for each in found if _fits(each, "model", model) and _fits(each, "text", text)]


def _fits(record: dict[str, Any], name: str, wanted: str | None) -> bool:
    return wanted is None or wanted.lower() in f"{record[name]} {record[f'{name}_sha256']}".lower()


def _record(kept: Kept) -> dict[str, Any]:
    what = kept.what
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(kept.created))
    fixed = {"created": created, "kind": what.kind, "model": what.model, "text": what.text, "original": what.original}
    fixed |= {"definition": what.definition, "version": kept.version}
    return {**fixed, "model_sha256": what.model_sha256, "text_sha256": what.text_sha256, **kept.figures}


def shown_rows(records: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and cells of a short table."""
    figures = ["tokens", "loss", "kld", "top1", "prompt", "generation", "accuracy"]
    shown = [name for name in figures if any(name in each for each in records)]
    rows = [
        (each["created"], each["kind"], each["model"], each["text"], *(_cell(each.get(name)) for name in shown))
        for each in records
    ]
    return ("measured", "kind", "model", "text", *shown), rows


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def write_csv(records: Sequence[dict[str, Any]], out: str | Path, *, force: bool = False) -> Path:
    """Write records as CSV (RFC 4180). Raises UsageError if the file exists, FileError if it cannot be written."""
    names = list(dict.fromkeys((*_FIXED, *(name for each in records for name in each))))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: _flat(value) for name, value in each.items()} for each in records)
    path, data = followed(Path(out), force=force), text.getvalue().encode()
    layout = FileLayout(path.name, data, (), len(data))
    place = Destination(path, [layout], option="`--csv`")
    with Reservation([place], force=force) as reservation, OutputFiles(replace(place), reservation) as output:
        output.commit([layout])
    return path


def _flat(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value
