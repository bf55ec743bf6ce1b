"""`bitsmith quantize`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.cli.command import command, config_options, model_argument, option
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import as_json
from bitsmith.cli.say import print_json, warn
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
    from bitsmith.cli.drawing import progress_bar
    from bitsmith.cli.show_quantized import print_plan, print_summary
    from bitsmith.pipeline import quantization
    from bitsmith.system.core import core

    note_missing_core()
    module = core()
    if module is not None:
        module.hold_memory()

    def announce(planned: Quantized) -> None:
        if not as_json:
            print_plan(planned, full=config.dry_run)
        warn(planned.warnings)

    with progress_bar() as report:
        results = quantization.quantize_each(model, to, config, report=report, on_plan=announce)
    if as_json:
        found = [result.to_dict() for result in results]
        print_json(found[0] if len(found) == 1 else found)
    elif not config.dry_run:
        for result in results:
            print_summary(result)
