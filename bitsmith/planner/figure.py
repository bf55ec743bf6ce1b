"""Figures of matplotlib, written as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from bitsmith.containers.destination import check_parent
from bitsmith.containers.output import write_file
from bitsmith.errors import UsageError, quoted


def check_picture(path: Path) -> None:
    """Raise UsageError without matplotlib or if the name does not end in .png, FileError if its folder
    cannot be written."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot={quoted(path)}: expected a name that ends in .png.")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'bitsmith[plot]'.")
    check_parent(path)


def new_figure(path: Path) -> Any:
    """An empty figure for a file. Raises as `check_picture`."""
    check_picture(path)
    from matplotlib.figure import Figure

    return Figure(figsize=(9, 5.5), layout="constrained")


def save_figure(figure: Any, path: Path, *, sources: Sequence[Path]) -> None:
    """Write a figure; an older picture is replaced, a source never. Raises FileError if it cannot be written."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    write_file(path, drawn.getvalue(), sources=sources, force=True)
