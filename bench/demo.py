"""The main job on the built-in model: quantize, measure against the original, print one table, generate.

    make demo        (or: python bench/demo.py)

Everything goes through the library's public functions. Files are written to ./demo.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import bitsmith
from bitsmith.cli.drawing import human_bytes, human_seconds, progress_bar
from bitsmith.evaluation import Evaluation
from bitsmith.pipeline.result import Quantized
from bitsmith.runtime.sampling import Sampling

FORMATS = ("q8_0", "q4_k_m", "q2_k")
PROMPT = "It was a dark evening in November, and the old house"


def main() -> None:
    """Make the three files, measure them, show them."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `bitsmith` does; read when torch is imported
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    folder = Path("demo")
    folder.mkdir(exist_ok=True)
    started = time.monotonic()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("format", "size", "bits/weight", "perplexity", "mean KLD", "top-1 agreement", "made in"):
        table.add_column(heading, justify="left" if heading == "format" else "right")
    for name in FORMATS:
        with progress_bar() as report:
            made = bitsmith.quantize("reference", to=name, out=folder, force=True, report=report)
            measured = bitsmith.evaluate(made.out, against="reference", context=256, report=report)
        if name == FORMATS[0]:
            table.add_row(*_original(measured))
        table.add_row(*_row(name, made, measured))
    console.print(table)
    console.print(f"\n{measured.tokens:,} tokens scored, {measured.text}; files in {folder}/\n", style="dim")
    console.print(f"[bold]{PROMPT}[/bold]", end="")
    model = bitsmith.load(folder / "reference-Q4_K_M.gguf")
    for piece in model.stream(PROMPT, max_tokens=80, sampling=Sampling(temperature=0.7, seed=1)):
        console.print(piece, end="", markup=False, soft_wrap=True)
    console.print(f"\n\n{human_seconds(time.monotonic() - started)} in all", style="dim")


def _original(measured: Evaluation) -> tuple[str, ...]:
    """The row of the reference model itself."""
    assert measured.divergence is not None
    looked_at = bitsmith.inspect("reference")
    perplexity = measured.divergence.reference_perplexity
    return "bf16 (original)", human_bytes(looked_at.size), "16.000", f"{perplexity.value:.3f}", "", "", ""


def _row(name: str, made: Quantized, measured: Evaluation) -> tuple[str, ...]:
    """The row of one file."""
    lost = measured.divergence
    assert lost is not None
    return (
        name,
        human_bytes(made.size),
        f"{made.bits_per_weight:.3f}",
        f"{measured.perplexity.value:.3f}",
        f"{lost.kld.value:.5f} ± {lost.kld.error:.5f}",
        f"{100 * lost.top1.value:.2f} ± {100 * lost.top1.error:.2f} %",
        human_seconds(made.seconds),
    )


if __name__ == "__main__":
    main()
