"""Recipe: what decides the bytes of an output, as the user chose it and as the manifest keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.recipe.target import Target


@dataclass(frozen=True)
class PlanOptions:
    """What the user chose beside the target, as far as it decides the tensors' types.

    rules: "REGEX=TYPE", unparsed: the container knows its types
    pre: the pre-tokenizer's name; None: recognised
    filename: the output's own name
    calibration: None without one; mixes choose other types with one, as llama-quantize does with an imatrix
    keep: regular expressions; tensors whose name one of them finds stay in 16 bits
    group_size: weights that share a scale, -1: a whole row; None: the container's usual
    symmetric: None: the container's usual. These last three are for containers with schemes
    """

    pure: bool = False
    rules: tuple[str, ...] = ()
    pre: str | None = None
    max_shard_bytes: int | None = None
    requantize: bool = False
    filename: str = ""
    calibration: CalibrationRecord | None = None
    keep: tuple[str, ...] = ()
    group_size: int | None = None
    symmetric: bool | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of an output.

    method, effort: see `bitsmith.calibration.method`; effort is "" where it does not matter
    calibration: None without one
    device: where calibration runs; sums differ in their last bits between devices
    """

    target: Target
    options: PlanOptions = PlanOptions()
    method: str = "nearest"
    effort: str = ""
    calibration: CalibrationRecord | None = None
    device: str = "cpu"

    def to_json(self) -> str:
        """One line, as the manifest keeps it."""
        options = self.options
        chosen: dict[str, Any] = {"to": str(self.target), "method": self.method, "pure": options.pure}
        chosen |= {"rules": list(options.rules), "pre": options.pre}
        grouping = {"keep": list(options.keep), "group_size": options.group_size, "symmetric": options.symmetric}
        chosen |= {name: value for name, value in grouping.items() if value not in (None, [])}
        if self.effort:
            chosen["effort"] = self.effort
        if self.calibration is not None:
            chosen["calibration"] = self.calibration.to_dict()
            chosen |= {} if self.device == "cpu" else {"device": self.device.partition(":")[0]}
        return json.dumps(chosen)
