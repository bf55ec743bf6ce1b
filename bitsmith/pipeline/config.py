"""QuantizeConfig: every option of `quantize`, for the command line and the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitsmith.calibration.config import CalibrationConfig, size_in_bytes
from bitsmith.pipeline.budget_config import BudgetConfig
from bitsmith.scale.config import ScaleConfig
from bitsmith.system.machine import cores
from bitsmith.system.options import option

_CALIBRATED_BY_DEFAULT = "default"  # the text if a method needs one and none is given
_GROUPED = "for gptq, awq, compressed and bnb"


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(BudgetConfig, ScaleConfig, CalibrationConfig):
    """All options of `quantize` except the model and the targets. Raises UsageError for a value that is never valid.

    Checks that depend on the model or the target come later, when the plan is made.
    """

    out: str | Path | None = option(
        None,
        "-o",
        group="Output",
        metavar="PATH",
        help="Output file (gguf) or folder (others); with several --to: the folder for all outputs; default: a name "
        "made from the model and the format.",
    )
    max_shard_size: str | None = option(
        None, group="Output", metavar="SIZE", help="Split the output into files of at most this size: 2GB, 512MiB."
    )
    dry_run: bool = option(False, group="Output", help="Print only the plan: types, exact size, time and memory.")
    method: str | None = option(
        None,
        group="Method",
        metavar="METHOD",
        help="How codes are chosen: nearest, gptq or learned; awq and smoothquant rescale columns first: awq, "
        "awq+gptq, ...; default: nearest without calibration, else the one that loses least for the format and "
        "--effort.",
    )
    effort: str | None = option(
        None,
        group="Method",
        metavar="LEVEL",
        help="fast (weighted scales), normal (gptq below 8 bits), high (learned) or max (then the scales of the whole "
        "model are trained, as by tune qat); default: normal. Giving it without --method also calibrates, on the "
        "built-in text unless --calibration is given.",
    )
    pure: bool = option(False, group="Types", help="One type for all matrices, no mix.")
    rules: Sequence[str] = option(
        (),
        "--rule",
        group="Types",
        metavar="REGEX=TYPE",
        help="Type for output tensors whose name contains a match of REGEX; repeatable; the first match wins.",
    )
    keep: Sequence[str] = option(
        (), group="Types", metavar="REGEX", help=f"Tensors that stay in 16 bits ({_GROUPED}); repeatable."
    )
    group_size: int | None = option(
        None,
        group="Types",
        help=f"Number of weights that share a scale; -1: a whole row ({_GROUPED}); default: 128, or 64 for bnb.",
    )
    symmetric: bool | None = option(
        None, "--sym/--asym", group="Types", help=f"--sym: without zero points; --asym: with zero points ({_GROUPED})."
    )
    double_quant: bool = option(
        False, group="Types", help="Quantize the scales too (bnb): bnb/nf4 becomes bnb/nf4-dq, bnb/fp4 bnb/fp4-dq."
    )
    pre: str | None = option(
        None, group="Source", metavar="NAME", help="Name of the pre-tokenizer, if it is not recognised."
    )
    requantize: bool = option(False, group="Source", help="Accept a source that is already quantized.")
    force: bool = option(
        False, group="Output", help="Replace an output that exists, and start although memory seems too small."
    )

    def __post_init__(self) -> None:
        from bitsmith.calibration.method import Method, check_effort

        super().__post_init__()
        if self.method is not None:
            Method.parse(self.method)
        if self.effort is not None:
            check_effort(self.effort)
        size_in_bytes("--max-shard-size", self.max_shard_size)
        self.check_budget()
        self.check_executor()

    @property
    def calibration_sources(self) -> tuple[str | Path, ...]:
        """The names of the calibration; the built-in text if the method or the effort needs one and none was given."""
        from bitsmith.calibration.method import Method

        if self.sources:
            return self.sources
        wanted = self.effort is not None if self.method is None else Method.parse(self.method).needs_text
        return (_CALIBRATED_BY_DEFAULT,) if wanted else ()

    @property
    def worker_threads(self) -> int:
        """The number of threads; one per core if none was given."""
        return cores() if self.threads is None else self.threads
