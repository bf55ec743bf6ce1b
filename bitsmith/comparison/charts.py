"""Charts of a comparison as Vega-Lite specifications, which the report draws and `--plots` writes as pictures.

Vega-Lite's script and the pictures come from vl-convert (the extra "compare"); the specifications are plain values.
Source: Satyanarayan, Moritz, Wongsuphasawat, Heer 2017, "Vega-Lite: A Grammar of Interactive Graphics".
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bitsmith.comparison.verdict import quality_loss
from bitsmith.errors import UsageError
from bitsmith.system.folders import cache_folder

if TYPE_CHECKING:
    from bitsmith.comparison.result import Comparison, Row

_COLORS = [
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8a6d3b",
]  # Okabe and Ito: colour-blind safe
_LEAST = 1e-9  # a logarithmic axis has no zero
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_WIDE, _HIGH = 640, 300  # pixels that the points take at least, on a screen of usual width
_PLACES = tuple((align, dy) for dy in (-8, 12, 2, -20, 24) for align in ("left", "right"))  # of a name beside its point
PICTURES = tuple(f"{name}.{suffix}" for name in ("loss", "texts", "layers") for suffix in ("svg", "png"))
_FIT = {"type": "fit-x", "contains": "padding"}
Spec = dict[str, Any]


def require_charts() -> None:
    """Raise UsageError if the package that draws is not installed."""
    if find_spec("vl_convert") is None:
        raise UsageError("the report's charts need vl-convert-python: pip install 'bitsmith[compare]'.")


def _converter() -> ModuleType:
    require_charts()
    return import_module("vl_convert")


def script() -> str:
    """Vega, Vega-Lite and vega-embed as one script without imports. Bundling takes seconds, so it is kept."""
    converter = _converter()
    version = str(getattr(converter, "__version__", ""))
    kept = cache_folder() / "compare" / f"vega-{hashlib.sha256(version.encode()).hexdigest()[:12]}.js"
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    text = str(converter.javascript_bundle())
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        os.replace(part, kept)
    except OSError:  # it is made again the next time
        pass
    return text


def charts(found: Comparison) -> dict[str, Spec]:
    """All charts that the comparison has values for, by name: "loss", "texts", "layers"."""
    drawn = {"loss": _loss(found)} if found.rows else {}
    if found.rows and len(found.texts) > 1:
        drawn["texts"] = _texts(found)
    if any(row.layers for row in found.rows):
        drawn["layers"] = _layers(found)
    return drawn


def pictures(found: Comparison) -> Iterator[tuple[str, bytes]]:
    """Every chart as SVG and PNG: the file's name, one of `PICTURES`, and its bytes."""
    converter = _converter()
    for name, spec in charts(found).items():
        fixed = _with_width(spec, 760)
        yield f"{name}.svg", converter.vegalite_to_svg(fixed).encode()
        yield f"{name}.png", converter.vegalite_to_png(fixed, scale=2)


def _with_width(spec: Spec, width: int) -> Spec:
    """A picture has a fixed width, a white ground, and shows the first of several choices."""
    axes = {"labelFontSize": 12, "titleFontSize": 12}
    return {**spec, "width": width, "background": "white", "config": {"font": "sans-serif", "axis": axes}}


def _point(row: Row, unit: float) -> dict[str, Any]:
    kld = row.summary.kld
    return {
        "name": row.name,
        "container": row.container,
        "size": row.file_bytes / unit,
        "bits": round(row.bits, 3),
        "kld": max(kld.value, _LEAST),
        "low": max(kld.value - 1.96 * kld.error, _LEAST),
        "high": max(kld.value + 1.96 * kld.error, _LEAST),
        "loss": f"{quality_loss(row):.2f} %",
        "top1": f"{100 * row.summary.top1.value:.2f} %",
        "front": row.front,
        "ties": ", ".join(row.ties) or "none",
    }


def _loss(found: Comparison) -> Spec:
    """Size against mean KLD: points with 95 % intervals, the Pareto front as a line, the noise floor."""
    largest = max(row.file_bytes for row in found.rows)
    unit, word = (1e9, "GB") if largest >= 2e9 else (1e6, "MB")
    points = placed([_point(row, unit) for row in found.rows])
    x = {
        "field": "size",
        "type": "quantitative",
        "title": f"file size, {word}",
        "scale": {"zero": False, "padding": 24},
        "axis": {"tickCount": 10},
    }
    y: Spec = {"field": "kld", "type": "quantitative", "title": "mean KLD, nats per token", "scale": {"type": "log"}}
    y["axis"] = {"format": "~g", "labelOverlap": True, "tickCount": 6}
    both, shared = {"x": x, "y": y}, {"type": "nominal", "title": None, "scale": {"range": _COLORS}}
    color = {"field": "container", **shared}
    tips = [("name", "candidate"), ("size", f"size, {word}"), ("bits", "bits per weight"), ("kld", "mean KLD")]
    tips += [("loss", "perplexity above the original"), ("top1", "top-1 agreement"), ("ties", "ties with")]
    tooltip = [{"field": field, "title": title} for field, title in tips]
    front = {"data": {"values": sorted((p for p in points if p["front"]), key=lambda p: p["size"])}}
    dot = {"type": "point", "filled": True, "size": 90, "opacity": 1}
    layers: list[Spec] = [
        {**front, "mark": {"type": "line", "color": "gray", "strokeDash": [4, 3]}, "encoding": both},
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": color},
        },
        {"mark": dot, "encoding": {**both, "color": color, "tooltip": tooltip}},
        *(_labels(both, *place) for place in sorted({(p["align"], p["dy"]) for p in points})),
    ]
    if found.floor is not None and found.floor > 0:
        layers = [*_floor(max(found.floor, _LEAST), y), *layers]
    return {"data": {"values": points}, "width": "container", "height": 380, "autosize": _FIT, "layer": layers}


def _labels(both: Spec, align: str, dy: int) -> Spec:
    """The names of the points that have them on this side."""
    mark = {"type": "text", "align": align, "dx": 9 if align == "left" else -9, "dy": dy, "fontSize": 11}
    chosen = f"datum.align == '{align}' && datum.dy == {dy}"
    return {
        "transform": [{"filter": chosen}],
        "mark": mark,
        "encoding": {**both, "text": {"field": "name"}},
    }


def placed(points: list[Spec]) -> list[Spec]:
    """The points with a side for each name, so that names cover neither each other nor other points, if that goes.

    align, dy: where the name stands, as Vega-Lite has it
    """
    logs = [math.log10(point["kld"]) for point in points]
    across = _spread([point["size"] for point in points], _WIDE)
    down = [_HIGH - y for y in _spread(logs, _HIGH)]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in zip(across, down, strict=True)]
    found = []
    for point, x, y in zip(points, across, down, strict=True):
        width = 6.5 * len(point["name"])
        best = min(_PLACES, key=lambda place: _covered(_box(x, y, width, place), taken))
        taken.append(_box(x, y, width, best))
        found.append({**point, "align": best[0], "dy": best[1]})
    return found


def _spread(values: list[float], length: float) -> list[float]:
    low, span = min(values), max(values) - min(values)
    return [length * (value - low) / span if span else length / 2 for value in values]


_Box = tuple[float, float, float, float]  # left, top, right, bottom


def _box(x: float, y: float, width: float, place: tuple[str, int]) -> _Box:
    align, dy = place
    left = x + 9 if align == "left" else x - 9 - width
    return left, y + dy - 6, left + width, y + dy + 6


def _covered(box: _Box, taken: list[_Box]) -> float:
    """How much of a box is covered or outside of the chart, in pixels squared."""
    outside = max(0.0, -box[0]) + max(0.0, box[2] - _WIDE - 20)
    shared = (
        max(0.0, min(box[2], each[2]) - max(box[0], each[0])) * max(0.0, min(box[3], each[3]) - max(box[1], each[1]))
        for each in taken
    )
    return 12 * outside + sum(shared)


def _floor(floor: float, y: Spec) -> list[Spec]:
    data = {"data": {"values": [{"kld": floor, "name": "noise floor: rounding of the original"}]}}
    mark = {"type": "text", "align": "left", "x": 4, "dy": -6, "color": "gray", "fontSize": 11}
    return [
        {**data, "mark": {"type": "rule", "color": "gray"}, "encoding": {"y": y}},
        {**data, "mark": mark, "encoding": {"y": y, "text": {"field": "name"}}},
    ]


def _texts(found: Comparison) -> Spec:
    """How much more than on all texts together a candidate loses on each: bars, 1 is the mean."""
    values = [
        {"name": row.name, "text": name, "times": summary.kld.value / row.summary.kld.value, "kld": summary.kld.value}
        for row in found.rows
        if row.summary.kld.value > 0
        for name, summary in row.domains.items()
    ]
    order = [row.name for row in found.rows]
    return {
        "data": {"values": values},
        "width": "container",
        "autosize": _FIT,
        "height": 260,
        "layer": [
            {
                "mark": {"type": "bar"},
                "encoding": {
                    "x": {
                        "field": "name",
                        "type": "nominal",
                        "sort": order,
                        "title": None,
                        "axis": {"labelAngle": -35},
                    },
                    "xOffset": {"field": "text"},
                    "y": {"field": "times", "type": "quantitative", "title": "KLD over the mean of all texts"},
                    "color": {"field": "text", "type": "nominal", "title": None, "scale": {"range": _COLORS}},
                    "tooltip": [
                        {"field": "name", "title": "candidate"},
                        {"field": "text", "title": "text"},
                        {"field": "kld", "title": "mean KLD"},
                        {"field": "times", "title": "over the mean", "format": ".2f"},
                    ],
                },
            },
            {"mark": {"type": "rule", "strokeDash": [3, 3]}, "encoding": {"y": {"datum": 1}}},
        ],
    }


def _layers(found: Comparison) -> Spec:
    """Relative squared error of each matrix: one cell a block and kind, for the chosen candidate."""
    values = []
    for row in found.rows:
        for name, error in row.layers.items():
            match = _BLOCK.fullmatch(name)
            if match is not None and error > 0:
                kind = match[2].removesuffix(".weight")
                values.append({"name": row.name, "block": int(match[1]), "kind": kind, "error": error})
    names = [row.name for row in found.rows if any(each["name"] == row.name for each in values)]
    worst = names[-1] if names else ""
    kinds = list(dict.fromkeys(each["kind"] for each in values))
    return {
        "data": {"values": values},
        "params": [{"name": "candidate", "value": worst, "bind": {"input": "select", "options": names}}],
        "transform": [{"filter": "datum.name == candidate"}],
        "width": "container",
        "autosize": _FIT,
        "height": 24 * max(1, len(kinds)),
        "mark": {"type": "rect"},
        "encoding": {
            "x": {
                "field": "block",
                "type": "ordinal",
                "title": "block",
                "axis": {"labelAngle": 0, "labelOverlap": True},
            },
            "y": {"field": "kind", "type": "nominal", "title": None, "sort": kinds},
            "color": {
                "field": "error",
                "type": "quantitative",
                "title": "relative squared error",
                "scale": {"type": "log", "scheme": "viridis"},
                "legend": {"orient": "bottom", "format": ".0e"},
            },
            "tooltip": [
                {"field": "block"},
                {"field": "kind", "title": "matrix"},
                {"field": "error", "title": "relative squared error", "format": ".3e"},
            ],
        },
    }
