"""`bitsmith quantize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitsmith.cli.core import note_missing_core
from bitsmith.cli.imatrix import CalibrationContext, CalibrationSeed, CalibrationSource, CalibrationTokens, Memory
from bitsmith.cli.options import AsJson, Device, Revision

if TYPE_CHECKING:
    from bitsmith.pipeline.result import Quantized


def quantize(
    model: Annotated[
        str,
        typer.Argument(help='Hugging Face folder, .safetensors or .gguf file, hub id (owner/name), or "reference".'),
    ],
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            help="CONTAINER/FORMAT; a bare name means gguf/NAME: q4_k_m, gptq/int4, compressed/w8a8. Repeat it for "
            "several outputs of one calibration.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Output file (gguf) or folder (others); with several --to the folder of all; default: named for you.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="How codes are chosen: nearest, gptq, learned, or after awq or smoothquant: awq, awq+gptq, ...; "
            "default: nearest without calibration, else what loses least for the format and --effort.",
        ),
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option(
            help="fast (weighted scales), normal (gptq below 8 bits), high (learned); how long learning may take. "
            "Calibrates on the built-in text where no --calibration is given.",
            show_default=False,
        ),
    ] = None,
    calibration: CalibrationSource = None,
    calibration_tokens: CalibrationTokens = None,
    calibration_context: CalibrationContext = None,
    seed: CalibrationSeed = 0,
    memory: Memory = None,
    device: Device = None,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all matrices, no mix.")] = False,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", help="REGEX=TYPE, searched in the output tensor's name; the first match wins."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="REGEX of tensors that stay in 16 bits (gptq, awq, compressed)."),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Weights that share a scale, -1: a whole row (gptq, awq, compressed); default: 128."),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option("--sym/--asym", help="Without or with zero points (gptq, awq, compressed).", show_default=False),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Worker threads; default: the machine's cores.")] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Split the output into files of at most this size: 2GB, 512MiB.")
    ] = None,
    pre: Annotated[str | None, typer.Option(help="Pre-tokenizer name, where it cannot be recognised.")] = None,
    revision: Revision = None,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Accept a source that is quantized already.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only the plan: types, exact size, expected time.")
    ] = False,
    as_json: AsJson = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
) -> None:
    """Quantize a model into a file that llama.cpp, Ollama, LM Studio or bitsmith runs."""
    from bitsmith.cli.drawing import progress_bar, stderr
    from bitsmith.pipeline import quantization
    from bitsmith.pipeline.config import QuantizeConfig
    from bitsmith.system.core import core

    note_missing_core()
    module = core()
    if module is not None:
        module.hold_memory()
    shown = stderr()

    def announce(planned: Quantized) -> None:
        if not as_json:
            _print_plan(planned, full=dry_run)
        for warning in planned.warnings:
            shown.print(f"Warning: {warning}", style="yellow", markup=False)

    choices = QuantizeConfig(
        out=out,
        method=method,
        effort=effort,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        calibration_context=calibration_context,
        seed=seed,
        memory=memory,
        device=device,
        pure=pure,
        rules=rule or [],
        keep=keep or [],
        group_size=group_size,
        symmetric=symmetric,
        threads=threads,
        max_shard_size=max_shard_size,
        pre=pre,
        revision=revision,
        requantize=requantize,
        dry_run=dry_run,
        force=force,
    )
    with progress_bar() as report:
        results = quantization.quantize_each(model, to, choices, report=report, on_plan=announce)
    if as_json:
        found = [result.to_dict() for result in results]
        typer.echo(json.dumps(found[0] if len(found) == 1 else found, indent=2))
    elif not dry_run:
        for result in results:
            _print_summary(result)


def _print_plan(planned: Quantized, *, full: bool) -> None:
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
        f"with {planned.threads} thread{'' if planned.threads == 1 else 's'}",
        soft_wrap=True,
    )
    if planned.calibration is not None:
        record = planned.calibration
        seen = f"{record.tokens:,} tokens of {record.source}" if record.tokens else record.source
        room = (
            f"; it takes {human_bytes(planned.calibration_memory)} of memory beside torch"
            if planned.calibration_memory
            else ""
        )
        console.print(f"method: {planned.method}, calibrated on {seen}{room}", soft_wrap=True, markup=False)
    console.print(f"output: {planned.out}", soft_wrap=True, markup=False)


def _print_summary(result: Quantized) -> None:
    from bitsmith.cli.drawing import human_bytes, human_seconds, stdout

    console = stdout()
    console.print(
        f"wrote {result.out} ({human_bytes(result.size)}, {result.bits_per_weight:.3f} bits per weight) in "
        f"{human_seconds(result.seconds)}, peak memory {human_bytes(result.peak_memory)}; "
        f"read back and verified in {human_seconds(result.verify_seconds)} of them",
        soft_wrap=True,
        markup=False,
    )
    for note in result.notes:
        console.print(note, soft_wrap=True, markup=False)
    worst = ", ".join(f"{name} {error:.2e}" for name, error in result.worst())
    if worst:
        console.print(f"largest relative squared errors: {worst}", soft_wrap=True, markup=False)
