"""`bitsmith quantize`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from bitsmith.cli.command import command, config_options, model_argument, option
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import as_json
from bitsmith.pipeline.config import QuantizeConfig

if TYPE_CHECKING:
    from bitsmith.pipeline.result import Quantized


@command("quantize")
@model_argument('Hugging Face folder, .safetensors or .gguf file, hub id (owner/name), or "reference".')
@option(
    "--to",
    multiple=True,
    required=True,
    metavar="FORMAT",
    group="Output",
    help="CONTAINER/FORMAT: gptq/int4, compressed/w8a8; a name alone means gguf/NAME: q4_k_m. Repeat it for several "
    "outputs of one calibration.",
)
@config_options(QuantizeConfig)
@as_json
def quantize(config: QuantizeConfig, model: str, to: tuple[str, ...], as_json: bool) -> None:
    """Quantize a model into a file that llama.cpp, Ollama, LM Studio or bitsmith runs."""
    from bitsmith.cli.drawing import progress_bar, stderr
    from bitsmith.cli.show_quantized import print_plan, print_summary
    from bitsmith.pipeline import quantization
    from bitsmith.system.core import core

    note_missing_core()
    module = core()
    if module is not None:
        module.hold_memory()
    shown = stderr()

    def announce(planned: Quantized) -> None:
        if not as_json:
            print_plan(planned, full=config.dry_run)
        for warning in planned.warnings:
            shown.print(f"Warning: {warning}", style="yellow", markup=False)

    with progress_bar() as report:
        results = quantization.quantize_each(model, to, config, report=report, on_plan=announce)
    for result in results:
        for warning in result.losses:
            shown.print(f"Warning: {warning}", style="yellow", markup=False)
    if as_json:
        found = [result.to_dict() for result in results]
        click.echo(json.dumps(found[0] if len(found) == 1 else found, indent=2))
    elif not config.dry_run:
        for result in results:
            print_summary(result)
