"""The comparison in words: which candidate to take, what cannot be told apart, which text is hurt most."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from bitsmith.comparison.result import Measured, Row
from bitsmith.comparison.texts import LEAST_DOCUMENTS
from bitsmith.system.sizes import human_bytes

_Z = 1.96
_ABOVE = 1.5  # a text that loses so many times the mean KLD is named
_TINY = 1e-6  # nats of mean KLD that are rounding alone
_SENSITIVE = ("code", "math", "maths", "mathematics")


def quality_loss(row: Row) -> float:
    """Perplexity above the original's, in per cent."""
    return 100 * (1 / row.summary.quality.value - 1)


def loss_bound(row: Row) -> float:
    """What it loses at most, in per cent of perplexity, at the end of the 95 % intervals.

    The larger of two losses: on the text, and on text as the original would write it, which is exp(KLD). A candidate
    may do better than the original on one text by chance; it cannot do better on what the original itself writes.
    """
    quality, kld = row.summary.quality, row.summary.kld
    on_text = 1 / max(quality.value - _Z * quality.error, 1e-9) - 1
    return 100 * max(on_text, math.expm1(min(kld.value + _Z * kld.error, 50.0)))


def verdict(rows: Sequence[Row], within: float, tokens: int, texts: Sequence[Measured] = ()) -> str:
    """One sentence. It says "surely" only where the errors of all texts are over LEAST_DOCUMENTS or more.

    rows: those that lose least first
    within: per cent of perplexity that count as small enough, see `loss_bound`
    """
    if not rows:
        return "No candidate could be compared."
    good = [row for row in rows if loss_bound(row) <= within]
    few = bool(few_warnings(texts))
    surely = "" if few else "surely "
    doubt = "; the text has too few documents to be sure" if few else ""
    if not good:
        best = rows[0]
        return (
            f"No candidate is {surely}within {within:g} % of the original on {tokens:,} tokens; "
            f"{best.name} ({_size(best)}) loses least: {_loss(best)}{doubt}."
        )
    chosen = min(good, key=lambda row: row.file_bytes)
    among = "the smallest candidate that" if len(rows) > 1 else "the only candidate, and"
    many = f" ({len(good)} of {len(rows)} are)" if len(rows) > 1 else ""
    said = f"{chosen.name} ({_size(chosen)}) is {among} is {surely}within {within:g} % of the original{many}: "
    said += _loss(chosen)
    if chosen.ties:
        said += f"; on {tokens:,} tokens it is indistinguishable from {_listed(chosen.ties)}"
    return f"{said}{doubt}."


def _size(row: Row) -> str:
    return f"{human_bytes(row.file_bytes)}, {row.bits:.2f} bits per weight"


def _loss(row: Row) -> str:
    error = 100 * row.summary.quality.error / row.summary.quality.value**2
    kld = row.summary.kld.value
    return f"its perplexity differs by {quality_loss(row):+.2f} ± {error:.2f} %, its mean KLD is {kld:.2g} nats"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def tie_notes(rows: Sequence[Row], tokens: int) -> tuple[str, ...]:
    """A sentence for each group of neighbours in the table that the errors do not separate."""
    found: list[str] = []
    for above, below in itertools.pairwise(rows):
        if below.name in above.ties:
            same = " (they are the same file)" if above.sha256 == below.sha256 else ""
            found.append(f"{above.name} and {below.name} are indistinguishable on {tokens:,} tokens{same}")
    return tuple(found)


def domain_warnings(rows: Sequence[Row], texts: Sequence[Measured]) -> tuple[str, ...]:
    """Where a candidate loses far more on one text than on all together; code and mathematics are named sooner."""
    if len(texts) < 2:
        return ()
    found = []
    for row in rows:
        mean = row.summary.kld
        for name, summary in row.domains.items():
            sensitive = name.lower() in _SENSITIVE
            limit = 1.0 if sensitive else _ABOVE
            apart = summary.kld.value - 1.96 * (summary.kld.error + mean.error) > mean.value
            if apart and summary.kld.value > limit * mean.value > 0:
                times = summary.kld.value / mean.value
                found.append(f"{row.name} loses {times:.1f} times as much on {name} as on all texts together")
    return tuple(found)


def better_warnings(rows: Sequence[Row]) -> tuple[str, ...]:
    """Candidates whose perplexity is below the original's, beyond the error: that is no gain."""
    return tuple(
        f"{row.name} has a lower perplexity than the original ({quality_loss(row):.2f} %), but a mean KLD of "
        f"{row.summary.kld.value:.2g}: it predicts something else, and happens to suit this text"
        for row in rows
        if row.summary.quality.value - 3 * row.summary.quality.error > 1
        and not row.at_floor
        and row.summary.kld.value >= _TINY
    )


def few_warnings(texts: Sequence[Measured]) -> tuple[str, ...]:
    """Texts whose errors are over so few documents or windows that they cannot be trusted."""
    return tuple(
        f"the errors on {text.name} are over {text.units} {text.unit} only and may be far too small; take more text"
        for text in texts
        if text.units < LEAST_DOCUMENTS
    )
