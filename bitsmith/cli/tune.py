"""`bitsmith tune`: `qlora`, `qat`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitsmith.cli.command import command, config_options, model_argument, option
from bitsmith.cli.options import as_json, only_one, quiet
from bitsmith.cli.say import print_json, warn
from bitsmith.tune.config import QloraConfig
from bitsmith.tune.qat import QatConfig

if TYPE_CHECKING:
    from bitsmith.pipeline.result import Quantized
    from bitsmith.tune.result import TunePlan


@click.group("tune", subcommand_metavar="COMMAND [ARGS]...", context_settings={"help_option_names": ["-h", "--help"]})
def tune() -> None:
    """Train a model: adapters over a quantized base (qlora), or the quantized model itself (qat)."""


@command("qlora")
@model_argument('The base: a Hugging Face folder, a hub name (owner/name), or "reference".')
@config_options(QloraConfig)
@quiet
@as_json
def qlora(config: QloraConfig, model: str, quiet: bool, as_json: bool) -> None:
    """Train an adapter (LoRA) over a frozen base in 4 bits, in PEFT's layout."""
    from bitsmith.cli.drawing import progress_bar, stderr, stdout
    from bitsmith.tune.qlora import run_qlora

    def announce(plan: TunePlan) -> None:
        for line in plan.lines():
            stderr().print(line, markup=False, soft_wrap=True, style="dim")
        warn(plan.notes)

    with progress_bar(quiet) as report:
        result = run_qlora(model, config, report=report, on_plan=announce)
    if as_json:
        print_json(result.to_dict())
        return
    for line in result.lines():
        stdout().print(line, markup=False, soft_wrap=True)


@command("qat")
@model_argument('Hugging Face folder, .safetensors or .gguf file, hub name (owner/name), or "reference".')
@option(
    "--to",
    required=True,
    multiple=True,
    metavar="FORMAT",
    group="Output",
    help="As in quantize: CONTAINER/FORMAT, or q4_k_m; one.",
)
@config_options(QatConfig)
@quiet
@as_json
def qat(config: QatConfig, model: str, to: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Quantize a model, and train what the file holds until it speaks like the original."""
    from bitsmith.cli.drawing import progress_bar
    from bitsmith.cli.show_quantized import print_plan, print_summary
    from bitsmith.tune.qat import run_qat

    def announce(planned: Quantized) -> None:
        if not as_json:
            print_plan(planned, full=config.dry_run)
        warn(planned.warnings)
        warn(planned.told, before="Note")

    with progress_bar(quiet) as report:
        result = run_qat(model, only_one(to, "tune qat"), config, report=report, on_plan=announce)
    warn(result.losses)
    if as_json:
        print_json(result.to_dict())
    elif not config.dry_run:
        print_summary(result)


tune.add_command(qlora)
tune.add_command(qat)
