"""CalibrationConfig: the options that `quantize` and `imatrix` share. ImatrixConfig: all options of `imatrix`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitsmith.errors import UsageError
from bitsmith.scale.config import ScaleConfig
from bitsmith.system.machine import check_threads
from bitsmith.system.options import REQUIRED, check_types, option
from bitsmith.system.sizes import parse_size
from bitsmith.texts.sources import names_of

FRESH = "Start from the beginning, and remove what an interrupted run of this output has left."


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How to calibrate, and where. Raises UsageError for a value that is invalid for every model."""

    calibration: str | Path | Sequence[str | Path] | None = option(
        None,
        group="Calibration",
        metavar="SOURCE",
        help="Text to run the model on, to find which columns of its matrices matter: default (a built-in text), a "
        "file of text, .jsonl, .json or .parquet, owner/name[:FILE] of the hub, self (the model's own text), or an "
        "importance file (.gguf, .dat); repeatable: texts are joined in order.",
    )
    calibration_tokens: int | None = option(
        None, group="Calibration", help="Maximum number of tokens; default: 128 windows."
    )
    calibration_context: int | None = option(
        None, group="Calibration", help="Tokens per window; default: 512, or the model's context if that is less."
    )
    seed: int = option(
        0, group="Calibration", help="Chooses the windows of the text; the same seed gives the same bytes."
    )
    calibration_all_experts: bool = option(
        False,
        group="Calibration",
        help="Every token of the text counts for every expert, not only for those that its router chooses; for models "
        "with experts.",
    )
    memory: str | None = option(
        None,
        group="Calibration",
        metavar="SIZE",
        help="Memory for hidden states, such as 4GB; what does not fit goes to disk; default: half of the free memory.",
    )
    device: str | None = option(
        None,
        group="Machine",
        metavar="DEVICE",
        help="Where the model runs for calibration: cpu, cuda or cuda:N; default: cuda if there is one.",
    )
    threads: int | None = option(None, group="Machine", help="Number of threads; default: one per core.")
    revision: str | None = option(
        None, group="Source", metavar="NAME", help="Branch, tag or commit of a model of the hub."
    )
    force: bool = option(False, group="Output", help="Replace an output that exists.")
    fresh: bool = option(False, group="Output", help=FRESH)

    def __post_init__(self) -> None:
        check_types(self)
        check_threads(self.threads)
        for flag, count in (
            ("--calibration-tokens", self.calibration_tokens),
            ("--calibration-context", self.calibration_context),
        ):
            if count is not None and count < 1:
                raise UsageError(f"{flag}={count}: expected 1 or more.")
        if self.seed < 0:
            raise UsageError(f"--seed={self.seed}: expected 0 or more.")
        size_in_bytes("--memory", self.memory)

    @property
    def sources(self) -> tuple[str | Path, ...]:
        """The names in `calibration`; empty: not given."""
        return names_of(self.calibration)

    @property
    def unused_with_a_file(self) -> tuple[str, ...]:
        """Flags of given options that only a calibration on text can use, not an importance file."""
        given = {
            "--calibration-tokens": self.calibration_tokens is not None,
            "--calibration-context": self.calibration_context is not None,
            "--seed": self.seed != 0,
            "--calibration-all-experts": self.calibration_all_experts,
            "--memory": self.memory is not None,
            "--device": self.device is not None,
        }
        return tuple(flag for flag, is_given in given.items() if is_given)

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes; None: not given."""
        return size_in_bytes("--memory", self.memory)


@dataclass(frozen=True, kw_only=True)
class ImatrixConfig(CalibrationConfig, ScaleConfig):
    """All options of `imatrix` except the model."""

    out: str | Path = option(
        REQUIRED,
        "-o",
        group="Output",
        metavar="FILE",
        help="NAME.gguf, or NAME.dat for llama.cpp's older format.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_executor()


def size_in_bytes(flag: str, size: str | None) -> int | None:
    """Bytes of a size such as "4GB"; None for None. Raises UsageError that names the option."""
    if size is None:
        return None
    try:
        return parse_size(size)
    except UsageError as error:
        raise error.at(flag) from error
