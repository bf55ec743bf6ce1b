"""`bitsmith convert`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from bitsmith.cli.command import command, config_options, model_argument
from bitsmith.cli.options import as_json
from bitsmith.cli.say import warn
from bitsmith.pipeline.convert_config import ConvertConfig

if TYPE_CHECKING:
    from bitsmith.pipeline.result import Quantized


@command("convert")
@model_argument('Hugging Face folder, .safetensors or .gguf file, hub name (owner/name), or "reference".')
@config_options(ConvertConfig)
@as_json
def convert(config: ConvertConfig, model: str, as_json: bool) -> None:
    """Make a 16-bit model of any format; merge, split or rename a model.

    --to bf16 makes a folder that transformers loads, from a quantized model too; --to gguf-lora makes a file for
    llama.cpp of an adapter's folder. Without --to, the types stay and every
    tensor keeps its bytes: several files become one, or files of --shard-size.
    """
    from bitsmith.cli.drawing import progress_bar, stderr
    from bitsmith.cli.show_quantized import print_plan, print_submitted, print_summary
    from bitsmith.pipeline.conversion import convert_model

    if config.of_adapter:
        _convert_adapter(model, config, as_json)
        return
    shown = stderr()

    def announce(planned: Quantized) -> None:
        if not as_json:
            print_plan(planned, full=config.dry_run)
        for warning in planned.warnings:
            shown.print(f"Warning: {warning}", style="yellow", markup=False)
        warn(planned.told, before="Note")

    with progress_bar() as report:
        result = convert_model(model, config, report=report, on_plan=announce)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    elif result.submitted is not None:
        print_submitted(result.submitted)
    elif not config.dry_run:
        print_summary(result)


def _convert_adapter(folder: str, config: ConvertConfig, as_json: bool) -> None:
    from bitsmith.cli.drawing import human_bytes, stdout
    from bitsmith.tune.gguf_lora import convert_adapter

    path = convert_adapter(folder, base=config.base, out=config.out, force=config.force)
    size = path.stat().st_size
    if as_json:
        click.echo(json.dumps({"out": str(path), "bytes": size}, indent=2))
    else:
        stdout().print(f"wrote {path} ({human_bytes(size)})", markup=False, soft_wrap=True)
