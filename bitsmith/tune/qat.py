"""`tune qat`: rounds a model block by block, and then trains the whole of it end to end against the original."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from bitsmith.errors import UsageError, quoted
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.quantization import quantize_checkpoint
from bitsmith.system.options import check_arguments, check_words, option, with_signature
from bitsmith.system.progress import Report, silent

if TYPE_CHECKING:
    from bitsmith.pipeline.result import Quantized
    from bitsmith.tune.qat_words import QatWords

DEPTHS = ("scales", "all")
_STEPS = {"scales": 200, "all": 400}
_SCALING = {"scales": 0.004, "all": 0.001}  # first step size of scales: smaller where codes move too


@dataclass(frozen=True, kw_only=True)
class QatConfig(QuantizeConfig):
    """All options of `tune qat` except the model and the target."""

    train: str = option(
        "scales",
        group="Training",
        metavar="WHAT",
        help="scales: codes stay, scales, minima and norms are trained; all: the weights behind the codes too.",
    )
    steps: int | None = option(None, group="Training", help="Number of steps; default: 200 for scales, 400 for all.")
    batch: int = option(8, group="Training", help="Windows of the text in a step.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train not in DEPTHS:
            raise UsageError(f"--train={quoted(self.train)}: unknown; expected {', '.join(DEPTHS)}.")
        for flag, count in (("--steps", self.steps), ("--batch", self.batch)):
            if count is not None and count < 1:
                raise UsageError(f"{flag}={count}: expected 1 or more.")

    @property
    def chosen_steps(self) -> int:
        """The number of steps."""
        return self.steps or _STEPS[self.train]


def tune_qat(
    model: str | Path,
    *,
    to: str,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
    **words: Unpack[QatWords],
) -> Quantized:
    """Quantize a model with training: rounded by `method`, then trained end to end against the original.

    model: a folder, a 16-bit file, a hub name or "reference"
    to: as in `bitsmith.quantize`
    The other keywords are the options of `bitsmith tune qat`. Raises as `bitsmith.quantize` does.
    """
    check_words("tune_qat", QatConfig, words, further=("to", "report", "on_plan"))
    check_arguments(tune_qat, {"model": model, "to": to})
    return run_qat(model, to, QatConfig(**words), report=report, on_plan=on_plan)


with_signature(tune_qat, QatConfig)


def run_qat(
    model: str | Path,
    to: str,
    config: QatConfig,
    *,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
) -> Quantized:
    """The same as `tune_qat`, with a configuration."""
    from bitsmith.calibration.end_to_end import EndToEnd

    if config.method is None:
        config = replace(config, method="gptq")
    how = EndToEnd(config.train, config.chosen_steps, config.batch, scaling=_SCALING[config.train])
    checkpoint = open_checkpoint(model, revision=config.revision)
    return quantize_checkpoint(checkpoint, [to], config, training=how, report=report, on_plan=on_plan)[0]
