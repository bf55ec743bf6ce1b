"""What `bitsmith quantize` prints: the plan before, the summary after."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from bitsmith.pipeline.result import Quantized


def print_plan(planned: Quantized, *, full: bool) -> None:
    """What becomes what: one line a tensor with --dry-run, else one line a kind of tensor."""
    from rich.table import Table

    from bitsmith.cli.drawing import cells, human_bytes, human_seconds, stdout

    console = stdout()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("tensor", "shape", "from", "to", "bytes", "why"):
        table.add_column(heading, justify="right" if heading in ("shape", "bytes") else "left", overflow="fold")
    for row in planned.tensor_rows() if full else planned.grouped_rows():
        table.add_row(*cells(row))
    console.print(table)
    plural = "s" if len(planned.paths) > 1 else ""
    console.print(
        f"{planned.target}: {planned.size:,} bytes ({human_bytes(planned.size)}) in {len(planned.paths)} file{plural}, "
        f"{planned.bits_per_weight:.3f} bits per weight; about {human_seconds(planned.expected_seconds)} "
        f"with {planned.threads} thread{'' if planned.threads == 1 else 's'}"
        + (f" and {human_bytes(planned.expected_memory)} of memory" if planned.expected_memory else ""),
        soft_wrap=True,
    )
    if planned.calibration is not None:
        record = planned.calibration
        seen = f"{record.tokens:,} tokens of {record.source}" if record.tokens else record.source
        room = (
            f"; calibrating takes {human_bytes(planned.calibration_memory)} of memory beside torch"
            if planned.calibration_memory
            else ""
        )
        if planned.calibration_disk:
            room += f", and {human_bytes(planned.calibration_disk)} of disk for temporary files"
        if planned.kept_disk:
            room += f"; {human_bytes(planned.kept_disk)} of disk beside the output, to continue after an interruption"
        if planned.calibration_products:
            room += (
                f"; {planned.calibration_products:.3g} products, of which this machine takes "
                f"{planned.products_per_second:.3g} a second"
            )
        console.print(f"method: {planned.method}, calibrated on {seen}{room}", soft_wrap=True, markup=False)
    console.print(f"output: {planned.out}", soft_wrap=True, markup=False)


def print_submitted(script: Path) -> None:
    """What to do with a run that was handed over."""
    from bitsmith.cli.drawing import stdout

    stdout().print(
        f"The work is not done yet. Its scripts are in {script.parent}; submit them: bash {script}",
        soft_wrap=True,
        markup=False,
    )


def print_summary(result: Quantized) -> None:
    """The size, the time and the largest errors of a finished output."""
    from bitsmith.cli.drawing import human_bytes, human_seconds, stdout

    console = stdout()
    console.print(
        f"wrote {result.out} ({human_bytes(result.size)}, {result.bits_per_weight:.3f} bits per weight) in "
        f"{human_seconds(result.seconds)}, peak memory {human_bytes(result.peak_memory)}; "
        f"of this time, {human_seconds(result.verify_seconds)} for reading back and verifying",
        soft_wrap=True,
        markup=False,
    )
    for note in result.notes:
        console.print(note, soft_wrap=True, markup=False)
    worst = ", ".join(f"{name} {error:.2e}" for name, error in result.worst())
    if worst:
        console.print(f"largest relative squared errors: {worst}", soft_wrap=True, markup=False)
