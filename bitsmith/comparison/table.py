"""The comparison as a table: flat records for CSV, frames and JSON, and the cells that people read."""

from __future__ import annotations

import csv
import io
import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bitsmith.comparison.tasks.scores import TaskScore
from bitsmith.comparison.verdict import quality_loss
from bitsmith.errors import UsageError
from bitsmith.evaluation.moments import Estimate
from bitsmith.system.sizes import human_bytes, human_seconds

if TYPE_CHECKING:
    from bitsmith.comparison.result import Comparison, Original, Row


def records(found: Comparison) -> list[dict[str, Any]]:
    """One flat dictionary for each candidate, the original first; bytes, bits, nats, shares and seconds."""
    return [_record(found.original), *(_record(row) for row in found.rows)]


def _record(row: Row | Original) -> dict[str, Any]:
    own = vars(row)
    record: dict[str, Any] = {
        "name": row.name,
        "path": str(row.path),
        "sha256": row.sha256,
        "container": own.get("container", "original"),
        "method": own.get("method", ""),
        "bytes": row.file_bytes,
        "bits_per_weight": row.bits,
        "linear_bits_per_weight": own.get("linear_bits"),
        "memory_bytes": row.memory,
        "make_seconds": own.get("make_seconds"),
    }
    for name, value in vars(row.summary).items():
        record |= {name: value.value, f"{name}_error": value.error} if isinstance(value, Estimate) else {name: value}
    record |= {"ties": ", ".join(own.get("ties", ())), "front": own.get("front"), "at_floor": own.get("at_floor")}
    for kind in ("prompt", "generation"):
        speed = None if row.speeds is None else getattr(row.speeds, kind)
        record[f"{kind}_tokens_per_second"] = None if speed is None else speed.value
    for task in row.tasks:
        record |= {f"{task.name}": task.value, f"{task.name}_low": task.low, f"{task.name}_high": task.high}
    for domain, summary in row.domains.items():
        record |= {f"kld[{domain}]": summary.kld.value, f"kld_error[{domain}]": summary.kld.error}
        record |= {f"perplexity[{domain}]": summary.perplexity.value}
    return record


def frame(found: Comparison) -> Any:
    """The records as a pandas DataFrame, by name. Raises UsageError if pandas is not installed."""
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise UsageError("frame() needs pandas: pip install pandas. `.records()` gives the same as a list.") from error
    return pandas.DataFrame(records(found)).set_index("name")


def to_csv(found: Comparison) -> str:
    """The records as CSV (RFC 4180)."""
    rows = records(found)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def headings(found: Comparison) -> tuple[str, ...]:
    """Headings of `cells`."""
    speed = ("prompt t/s", "gen. t/s") if any(row.speeds for row in found.rows) else ()
    tasks = tuple(task.name for task in found.original.tasks)
    return (
        *("candidate", "size", "bits", "linears", "perplexity", "loss", "mean KLD", "median", "90 %", "99 %"),
        *("99.9 %", "max", "top-1", "lost", "won", "memory", "made in", *tasks, *speed),
    )


def cells(found: Comparison) -> list[tuple[str, ...]]:
    """One row of texts for the original and each candidate, those that lose least first."""
    wide = len(headings(found))
    first = found.original
    own = [first.name, human_bytes(first.file_bytes), f"{first.bits:.2f}", "", _plain(first.summary.perplexity, 3)]
    own += [""] * 10 + [_bytes(first.memory), "", *map(_task, first.tasks)]
    own += _speeds(first)
    return [(*own, *[""] * (wide - len(own))), *(_cells(row, wide) for row in found.rows)]


def _cells(row: Row, wide: int) -> tuple[str, ...]:
    lost = row.summary
    error = 100 * lost.quality.error / lost.quality.value**2
    quantiles = (lost.kld_median, lost.kld_90, lost.kld_99, lost.kld_999, lost.kld_max)
    texts = (
        *(row.name, human_bytes(row.file_bytes), f"{row.bits:.2f}", f"{row.linear_bits:.2f}"),
        *(_plain(lost.perplexity, 3), f"{quality_loss(row):.2f} ± {error:.2f} %", shown(lost.kld)),
        *(f"{value:.4f}" if value >= 0.01 else f"{value:.2g}" for value in quantiles),
        *(f"{100 * share.value:.2f} %" for share in (lost.top1, lost.lost, lost.won)),
        *(_bytes(row.memory), "" if row.make_seconds is None else human_seconds(row.make_seconds)),
        *map(_task, row.tasks),
    )
    texts += tuple(_speeds(row))
    return (*texts, *[""] * (wide - len(texts)))


def _speeds(row: Row | Original) -> list[str]:
    speeds = row.speeds
    return [] if speeds is None else [_plain(speeds.prompt, 0), _plain(speeds.generation, 1)]


def shown(estimate: Estimate) -> str:
    """An estimate with as many digits as its error has a use for: "0.000069 ± 0.000001"."""
    error = estimate.error
    digits = 5 if not error > 0 else min(9, max(4, 1 - math.floor(math.log10(error))))
    return _plain(estimate, digits)


def values(found: Comparison) -> list[tuple[float | str | None, ...]]:
    """The values behind `cells`, for sorting: bytes, bits, per cent, nats, shares, seconds; None for an empty cell."""
    rows: list[Row | Original] = [found.original, *found.rows]
    return [_values(row, len(headings(found))) for row in rows]


def _values(row: Row | Original, wide: int) -> tuple[float | str | None, ...]:
    own, lost = vars(row), row.summary
    first = (row.name, row.file_bytes, row.bits, own.get("linear_bits"), lost.perplexity.value)
    figures: tuple[float | None, ...] = (None,) * 10
    if "linear_bits" in own:
        quantiles = (lost.kld_median, lost.kld_90, lost.kld_99, lost.kld_999, lost.kld_max)
        shares = (lost.top1.value, lost.lost.value, lost.won.value)
        figures = (1 / lost.quality.value - 1, lost.kld.value, *quantiles, *shares)
    speeds = () if row.speeds is None else (row.speeds.prompt.value, row.speeds.generation.value)
    tasks = (task.value for task in row.tasks)
    found = (*first, *figures, row.memory, own.get("make_seconds"), *tasks, *speeds)
    return (*found, *[None] * (wide - len(found)))


def _plain(estimate: Estimate, digits: int) -> str:
    return f"{estimate.value:.{digits}f} ± {estimate.error:.{digits}f}"


def _task(task: TaskScore) -> str:
    return f"{100 * task.value:.1f} % ({100 * task.low:.1f} to {100 * task.high:.1f})"


def _bytes(count: int | None) -> str:
    return "" if count is None else human_bytes(count)
