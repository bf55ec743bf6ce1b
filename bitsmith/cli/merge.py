"""`bitsmith merge`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitsmith.cli.command import Argument, command, config_options, model_argument, option
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import as_json, only_one, quiet
from bitsmith.cli.say import print_json, warn
from bitsmith.tune.merge import MergeConfig

if TYPE_CHECKING:
    from bitsmith.pipeline.result import Quantized


@command("merge")
@model_argument('The adapter\'s base in 16 bits: a Hugging Face folder, a hub name, or "reference".')
@click.argument("adapter", cls=Argument, type=click.Path(), help="A folder with an adapter (LoRA) in PEFT's layout.")
@option(
    "--to",
    required=True,
    multiple=True,
    metavar="FORMAT",
    group="Output",
    help="As in quantize, or bf16, f16, f32: a folder; one.",
)
@config_options(MergeConfig)
@quiet
@as_json
def merge(config: MergeConfig, model: str, adapter: str, to: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Merge an adapter into its 16-bit base and quantize the sum in one pass; measure what that lost."""
    from bitsmith.cli.drawing import progress_bar, stdout
    from bitsmith.cli.show_quantized import print_plan, print_summary
    from bitsmith.tune.merge import run_merge

    note_missing_core()

    def announce(planned: Quantized) -> None:
        if not as_json:
            print_plan(planned, full=config.dry_run)
        warn(planned.warnings)
        warn(planned.told, before="Note")

    with progress_bar(quiet) as report:
        made = run_merge(model, adapter, only_one(to, "merge"), config, report=report, on_plan=announce)
    warn(made.quantized.losses)
    if as_json:
        print_json(made.to_dict())
        return
    if not config.dry_run:
        print_summary(made.quantized)
    if made.loss is not None:
        for line in made.loss.lines():
            stdout().print(line, markup=False, soft_wrap=True)
