"""Draws bits a weight against KLD, from the result lines of `calibrated.py`.

    python bench/calibrated.py --llama-cpp DIR --calibration FILE --text FILE --results all.jsonl
    python bench/quality_chart.py all.jsonl --text FILE --out docs/quality.png

Bits are those of whole files: what stays in 16 bits counts too. One line a maker joins its calibrated files with the
least loss: a file is left out where another of the same maker has no more bits and loses less. All files are points.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from calibrated import Result, read_results

MAKERS = {  # maker -> name, colour, marker
    "ours": ("bitsmith, error feedback", "#1f6f5c", "o"),
    "llama-quantize": ("llama-quantize, importance matrix", "#b5542c", "s"),
    "autoround": ("AutoRound", "#5a5a8c", "^"),
    "llm-compressor": ("llm-compressor", "#8c7a3d", "v"),
}
LEAST, MOST = 1.6, 7.0  # bits a weight


def points(results: Iterable[Result], text: str) -> dict[str, list[tuple[float, float, str]]]:
    """(bits a weight, KLD, name) of the calibrated files of each maker, from the fewest bits on."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    for result in results:
        if result.row.calibrated and text in result.losses and LEAST <= result.bits_per_weight <= MOST:
            name = result.row.width.removeprefix("gguf/")
            name = f"{name} {result.row.method}" if result.row.method == "learned" else name
            each = result.bits_per_weight, result.losses[text].kld, name
            found.setdefault(result.row.maker, []).append(each)
    return {maker: sorted(each) for maker, each in found.items()}


def front(files: Iterable[tuple[float, float, str]]) -> list[tuple[float, float]]:
    """The files that no other with as few bits beats: (bits a weight, KLD)."""
    best: list[tuple[float, float]] = []
    for bits, kld, _ in sorted(files):
        if not best or kld < best[-1][1]:
            best.append((bits, kld))
    return best


def draw(found: dict[str, list[tuple[float, float, str]]]) -> Any:
    """The figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for maker, (label, colour, marker) in MAKERS.items():
        files = found.get(maker)
        if not files:
            continue
        axes.plot(*zip(*front(files), strict=True), color=colour, linewidth=1.2)
        bits, losses = [each[0] for each in files], [each[1] for each in files]
        axes.plot(bits, losses, marker, color=colour, markersize=5, label=label)
        left = maker == "ours"
        for x, y, name in files:
            axes.annotate(
                name,
                (x, y),
                xytext=(-4, -4) if left else (4, 4),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=6,
                color=colour,
            )
    axes.set(xlabel="bits a weight of the whole file", ylabel="mean KLD, nats a token", yscale="log")
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON lines of calibrated.py")
    parser.add_argument("--text", required=True, help="name of the text that losses are of")
    parser.add_argument("--out", type=Path, default=Path("docs/quality.png"), help="PNG (default: docs/quality.png)")
    args = parser.parse_args()
    found = points([each for path in args.results for each in read_results(path)], Path(args.text).name)
    if not found:
        parser.error(f"no calibrated file was measured on {args.text}; see --text of calibrated.py")
    draw(found).savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
