"""Figures of matplotlib, written as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from bitsmith.containers.output import write_file
from bitsmith.errors import UsageError, quoted


def new_figure(path: Path) -> Any:
    """An empty figure for a file. Raises UsageError without matplotlib or if the name does not end in .png."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot={quoted(path)}: expected a name that ends in .png.")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'bitsmith[plot]'.") from None
    return Figure(figsize=(9, 5.5), layout="constrained")


def save_figure(figure: Any, path: Path, *, sources: Sequence[Path]) -> None:
    """Write a figure; an older picture is replaced, a source never. Raises FileError if it cannot be written."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    write_file(path, drawn.getvalue(), sources=sources, force=True)
