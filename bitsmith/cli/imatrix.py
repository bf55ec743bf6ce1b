"""`bitsmith imatrix`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.calibration.config import ImatrixConfig
from bitsmith.cli.command import command, config_options, model_argument
from bitsmith.cli.options import as_json, quiet
from bitsmith.cli.say import print_json, warn

if TYPE_CHECKING:
    from bitsmith.calibration.run import ImatrixResult


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
    from bitsmith.cli.drawing import progress_bar

    with progress_bar(quiet) as report:
        result = run.write_imatrix(model, config, report=report)
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
