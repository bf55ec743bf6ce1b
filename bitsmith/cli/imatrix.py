"""`bitsmith imatrix`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.calibration.config import ImatrixConfig
from bitsmith.cli.command import command, config_options, model_argument
from bitsmith.cli.options import as_json, quiet
from bitsmith.cli.say import print_json, warn

if TYPE_CHECKING:
    from bitsmith.calibration.cost import Cost
    from bitsmith.calibration.run import ImatrixResult, Prepared


@command("imatrix")
@model_argument("The model to calibrate: any model name or file.")
@config_options(ImatrixConfig)
@quiet
@as_json
def imatrix(config: ImatrixConfig, model: str, quiet: bool, as_json: bool) -> None:
    """Measure which columns of a model's matrices matter, and write an importance file of llama.cpp's.

    Without --calibration it runs on the built-in text.
    """
    from bitsmith.calibration import run
    from bitsmith.calibration.cost import LONG_SECONDS
    from bitsmith.cli.drawing import human_bytes, human_seconds, progress_bar, stderr

    def announce(prepared: Prepared, cost: Cost) -> None:
        record = prepared.record
        seen = f"{record.tokens:,} tokens of {record.source} in windows of {record.context}"
        memory = f"{human_bytes(cost.memory)} of memory beside torch"
        disk = f" and {human_bytes(cost.disk)} of disk for temporary files" if cost.disk else ""
        stderr().print(
            f"{seen}: about {human_seconds(cost.seconds)}, {memory}{disk}", markup=False, soft_wrap=True, style="dim"
        )
        warn(prepared.told, before="Note")
        if cost.seconds > LONG_SECONDS:
            warn([f"this takes about {human_seconds(cost.seconds)}; fewer --calibration-tokens take less"])

    with progress_bar(quiet) as report:
        result = run.write_imatrix(model, config, report=report, on_plan=announce)
    warn(result.warnings)
    if as_json:
        print_json(result.to_dict())
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
