"""`bitsmith quantize`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.cli.command import command, config_options, model_argument, option
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import as_json, quiet
from bitsmith.cli.say import Interrupted, print_json, warn
from bitsmith.errors import BitsmithError
from bitsmith.pipeline.config import QuantizeConfig

if TYPE_CHECKING:
    from bitsmith.pipeline.result import Quantized


@command("quantize")
@model_argument('Hugging Face folder, .safetensors or .gguf file, hub id (owner/name), or "reference".')
@option(
    "--to",
    multiple=True,
    metavar="FORMAT",
    group="Output",
    help="CONTAINER/FORMAT: gptq/int4, compressed/w8a8; a name alone means gguf/NAME: q4_k_m. Repeat it for several "
    "outputs of one calibration. With a budget: a container alone (gguf, compressed, ...); default: gguf.",
)
@config_options(QuantizeConfig)
@quiet
@as_json
def quantize(config: QuantizeConfig, model: str, to: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Quantize a model into a file that llama.cpp, Ollama, LM Studio or bitsmith runs."""
    from bitsmith.cli.drawing import progress_bar
    from bitsmith.cli.show_quantized import print_plan, print_submitted, print_summary
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
        warn(planned.notes)
        warn(planned.told, before="Note")

    finished: list[Quantized] = []

    def done(result: Quantized) -> None:
        finished.append(result)
        warn(result.losses)
        if not as_json:
            print_summary(result)

    try:
        with progress_bar(quiet) as report:
            found = quantization.quantize_each(model, to, config, report=report, on_plan=announce, on_done=done)
    except KeyboardInterrupt as stopped:
        raise Interrupted(_left(finished, len(to)), always=bool(finished)) from stopped
    except (BitsmithError, OSError):
        if finished:
            warn([_left(finished, len(to))], before="Note")
        raise
    handed = next((each.submitted for each in found if each.submitted is not None), None)
    if handed is not None and not as_json:
        print_submitted(handed)
    if as_json:
        results = [result.to_dict() for result in found]
        print_json(results[0] if len(results) == 1 else results)


def _left(finished: list[Quantized], wanted: int) -> str:
    """What is there after a run that did not come to its end."""
    rest = "no half-written file was left"
    if not finished:
        return rest
    names = ", ".join(str(result.out) for result in finished)
    return f"{len(finished)} of {wanted} outputs are finished ({names}); of the others {rest}"
