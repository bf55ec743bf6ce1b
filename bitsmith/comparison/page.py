"""The report: one HTML page that holds everything and asks no other place for anything."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsmith.comparison.charts import charts, script
from bitsmith.comparison.generations import same_until
from bitsmith.comparison.table import cells, headings, values
from bitsmith.errors import printable
from bitsmith.system.sizes import human_bytes, human_seconds

if TYPE_CHECKING:
    from bitsmith.comparison.result import Comparison

_HERE = Path(__file__).parent
# Vega compiles its expressions, which needs unsafe-eval; nothing can be fetched all the same
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data:"
_ABOUT = {
    "loss": (
        "Size against loss",
        "Lower and further left is better. Bars hold the mean with 95 %; the dashed line joins the candidates that no "
        "other one beats in both; what lies at the noise floor lost no more than rounding does to the original.",
    ),
    "texts": (
        "Which text is hurt most",
        "The loss on each text over the loss on all together: bars above 1 lose more there.",
    ),
    "layers": (
        "Which layer pays",
        "The squared error of each matrix beside the original's, over the sum of its squares.",
    ),
}


def page(found: Comparison) -> str:
    """The whole page. Raises UsageError if the package that draws charts is not installed."""
    drawn = charts(found)
    title = f"{found.original.name}: what each file lost"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="verdict">{_text(found.verdict)}</p>',
        _list(found.warnings, "warning"),
        *(_chart(name) for name in drawn if name == "loss"),
        _table(found),
        _list(found.notes, "dim"),
        _failures(found),
        *(_chart(name) for name in drawn if name != "loss"),
        _generations(found),
        _how(found),
    ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title>",
            f"<style>\n{_file('page.css')}</style>\n</head>\n<body>",
            *(part for part in parts if part),
            f'<script type="application/json" id="charts">{_json(drawn)}</script>',
            f"<script>{_safe(script())}</script>\n<script>\n{_file('page.js')}</script>\n</body>\n</html>\n",
        ]
    )


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _text(value: object) -> str:
    """Names come from files: no markup, no orders."""
    return html.escape(printable(str(value), keep=""))


def _json(value: Any) -> str:
    """JSON inside of a script element: "<" would end it."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _safe(code: str) -> str:
    """A script inside of a script element, where this text would end it."""
    return code.replace("</script", "<\\/script")


def _list(lines: Sequence[str], kind: str) -> str:
    return "".join(["<ul>", *(f'<li class="{kind}">{_text(line)}</li>' for line in lines), "</ul>"]) if lines else ""


def _chart(name: str) -> str:
    title, about = _ABOUT[name]
    return f'<h2>{title}</h2>\n<p class="dim">{about}</p>\n<div class="chart" id="chart-{name}"></div>'


def _table(found: Comparison) -> str:
    head = "".join(f'<th scope="col"><button>{_text(name)}</button></th>' for name in headings(found))
    rows = []
    for number, (texts, numbers) in enumerate(zip(cells(found), values(found), strict=True)):
        kind = ' class="original"' if number == 0 else ""
        inner = "".join(
            f'<td data-value="{_value(value)}">{_text(text)}</td>' for text, value in zip(texts, numbers, strict=True)
        )
        rows.append(f"<tr{kind}>{inner}</tr>")
    return (
        '<h2>All figures</h2>\n<p class="dim">Press a heading to sort. Errors are standard errors over documents.</p>\n'
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _value(value: float | str | None) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "1e999"
    return "" if value is None else _text(value)


def _failures(found: Comparison) -> str:
    lines = [f"{each.name}: {each.reason}" for each in found.failures]
    return f"<h2>Left out</h2>\n{_list(lines, 'warning')}" if lines else ""


def _generations(found: Comparison) -> str:
    parts = []
    for each in found.generations:
        parts.append(f'<h3>{_text(" ".join(each.prompt.split()))} &hellip;</h3><div class="texts">')
        parts.append(f"<div><h4>{_text(found.original.name)}</h4><pre>{_written(each.original)}</pre></div>")
        for name, text in each.texts.items():
            same = same_until(each.original, text)
            rest = f"<mark>{_written(text[same:])}</mark>" if same < max(len(text), len(each.original)) else ""
            parts.append(f"<div><h4>{_text(name)}</h4><pre>{_written(text[:same])}{rest}</pre></div>")
        parts.append("</div>")
    about = "Greedy, after the same prompts. From the mark on, a candidate writes something else than the original."
    return f'<h2>What they write</h2>\n<p class="dim">{about}</p>\n{"".join(parts)}' if parts else ""


def _written(text: str) -> str:
    return html.escape(printable(text))


def _how(found: Comparison) -> str:
    how = found.conditions
    facts: list[tuple[str, str]] = [
        ("command", how.command),
        ("version", f"bitsmith {how.version}, kernel {how.kernel}"),
        ("machine", f"{how.machine}, {how.threads} threads, {human_seconds(how.seconds)}"),
        ("original", f"{found.original.path}, {human_bytes(found.original.file_bytes)}, {found.original.sha256}"),
    ]
    for text in found.texts:
        what = (
            f"{text.windows:,} windows of {how.context} tokens, the second half of each scored: {text.tokens:,} tokens"
        )
        over = f"errors over {text.units:,} {text.unit}"
        facts.append((f"text {text.name}", f"{text.text}: {what}; {over}; sha256 {text.text_sha256}"))
    facts += [
        (f"noise floor, {floor.name}", f"{floor.kld.value:.3e} ± {floor.kld.error:.1e} on {floor.tokens:,} tokens")
        for floor in found.floors
    ]
    facts += [(row.name, _file_facts(row.path, row.sha256, row.method)) for row in found.rows]
    return f"<h2>How this was measured</h2>\n{_facts(facts)}\n{_EXPLAINED}"


def _file_facts(path: Path, sha256: str, method: str) -> str:
    return f"{path}, sha256 {sha256}" + (f", codes chosen by {method}" if method else "")


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    inner = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    return f'<dl class="facts">{inner}</dl>'


_EXPLAINED = """<p class="dim">KLD is KL(original || candidate) in nats per token, over the predictions of each token
after the first half of its window. Errors come from a bootstrap over documents (2,000 draws); all candidates see the
same draws, and two tie if the middle 95 % of the difference of their means include zero. Bits per weight are the bytes
of all tensors, scales and offsets among them, over the number of all weights. "Lost" are tokens where the original's
most probable token is the text's and the candidate's is not; "won" the other way round.</p>"""
