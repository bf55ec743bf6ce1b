"""Results as short tables in notebooks: `_repr_html_`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def html_table(title: str, rows: Iterable[Sequence[object]], *, headings: Sequence[str] = ()) -> str:
    """A table in HTML; every text is escaped."""
    head = "".join(f"<th>{html.escape(each)}</th>" for each in headings)
    lines = [f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    body = "".join([f"<tr>{head}</tr>" if head else "", *lines])
    return f"<table><caption>{html.escape(title)}</caption>{body}</table>"
