"""`bitsmith imatrix`, and the options of calibration that it shares with `bitsmith quantize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitsmith.cli.options import Device

if TYPE_CHECKING:
    from bitsmith.calibration.run import ImatrixResult

CalibrationSource = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="SOURCE",
        help="Weigh columns by what they are fed: a text or .jsonl file, owner/name[:FILE] of the hub, self (the "
        "model's own text), default (a built-in text), or an importance file (.gguf, .dat).",
    ),
]
CalibrationTokens = Annotated[
    int | None, typer.Option(help="Tokens to calibrate on at most; default: 128 windows.", min=1)
]
CalibrationContext = Annotated[
    int | None, typer.Option(help="Tokens in a window; default: 512, or the model's context.", min=1)
]
CalibrationSeed = Annotated[int, typer.Option("--seed", help="Which windows of the text; same seed, same bytes.")]
Memory = Annotated[
    str | None,
    typer.Option(
        help="What calibration's hidden states may take before they go to disk, such as 4GB; default: half of what is "
        "free."
    ),
]


def imatrix(
    model: Annotated[str, typer.Argument(help="The model to calibrate: any model name or file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="NAME.gguf, or NAME.dat for llama.cpp's older format.")],
    calibration: CalibrationSource = None,
    calibration_tokens: CalibrationTokens = None,
    calibration_context: CalibrationContext = None,
    seed: CalibrationSeed = 0,
    memory: Memory = None,
    device: Device = None,
    threads: Annotated[int | None, typer.Option(help="Threads for arithmetic; default: torch's choice.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
) -> None:
    """Measure which columns of a model's matrices matter, and write them as llama.cpp's importance file."""
    from bitsmith.calibration import run
    from bitsmith.cli.drawing import progress_bar, stderr
    from bitsmith.system.sizes import parse_size

    with progress_bar() as report:
        result = run.make_imatrix(
            model,
            out=out,
            calibration=calibration,
            calibration_tokens=calibration_tokens,
            calibration_context=calibration_context,
            seed=seed,
            memory=None if memory is None else parse_size(memory),
            threads=threads,
            device=device,
            revision=revision,
            force=force,
            report=report,
        )
    for warning in result.warnings:
        stderr().print(f"Warning: {warning}", style="yellow", markup=False)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _print(result)


def _print(result: ImatrixResult) -> None:
    from bitsmith.cli.drawing import human_bytes, stdout

    record = result.record
    stdout().print(
        f"wrote {result.out} ({human_bytes(result.size)}): {result.entries} matrices, {record.tokens:,} tokens of "
        f"{record.source} in windows of {record.context}",
        soft_wrap=True,
        markup=False,
    )
