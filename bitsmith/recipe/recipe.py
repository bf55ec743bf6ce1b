"""Recipe: everything that decides the bytes of an output. The manifest stores it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.recipe.coverage import Coverage, manifest_text
from bitsmith.recipe.target import Target

QUANTIZE = "quantize"
_WIDTH = 8  # characters of a number that is known at the end; a file's size is known before


@dataclass(frozen=True)
class PlanOptions:
    """The user's options, beside the target, that decide the types of the tensors.

    pure: use one type for all tensors
    rules: "REGEX=TYPE", not parsed yet, since each container has its own types
    pre: name of the pre-tokenizer; None to recognise it
    max_shard_bytes: largest size of one output file; None for no limit
    requantize: True if a quantized source is allowed
    filename: name of the output file
    calibration: None without calibration; with one, mixes choose other types, like llama-quantize with an imatrix
    keep: regular expressions; tensors whose name matches one stay in 16 bits
    group_size: number of weights that share a scale; -1 for a whole row, None for the container's usual size
    symmetric: None for the container's usual choice
    model_name: value of general.name in a GGUF file; None for the source's own
    Only containers with schemes use keep, group_size and symmetric.
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
    model_name: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of an output.

    method, effort: see `bitsmith.calibration.method`; effort is "" if it does not matter
    calibration: None without calibration
    covers: whether experts are counted: the model has some, and the calibration is a text
    coverage: what they saw; None until it is known
    device: where calibration runs; the last bits of sums differ between devices
    command: the command that makes the output, "quantize" or "convert"
    source: short name of the source model; "" leaves it out
    origin: the recipe in the source's own manifest; None if it has none. `convert` keeps it
    merged: see `Checkpoint.merged`
    recovered: number of quantized tensors that lay on their format's grid and are kept exactly, see `quant.lattice`
    training: how the whole model was trained after rounding, see `calibration.end_to_end.EndToEnd`; empty: not at all
    """

    target: Target
    options: PlanOptions = PlanOptions()
    method: str = "nearest"
    effort: str = ""
    calibration: CalibrationRecord | None = None
    device: str = "cpu"
    command: str = QUANTIZE
    source: str = ""
    origin: Mapping[str, Any] | None = None
    covers: bool = False
    coverage: Coverage | None = None
    merged: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    recovered: int = 0

    def to_json(self) -> str:
        """The recipe as one line of JSON, for the manifest."""
        options = self.options
        further: dict[str, Any] = {"source": self.source, "max_shard_bytes": options.max_shard_bytes}
        further |= {"model_name": options.model_name, "source_recipe": self.origin, "merged": dict(self.merged)}
        set_ = {name: value for name, value in further.items() if value}
        if self.command != QUANTIZE:
            chosen: dict[str, Any] = {"command": self.command, "to": str(self.target)}
            return json.dumps(chosen | ({"pre": options.pre} if options.pre else {}) | set_)
        set_ |= {"training": dict(self.training)} if self.training else {}
        set_ |= {"requantize": True} if options.requantize else {}
        chosen = {"to": str(self.target), "method": self.method, "pure": options.pure}
        chosen |= {"rules": list(options.rules), "pre": options.pre}
        grouping = {"keep": list(options.keep), "group_size": options.group_size, "symmetric": options.symmetric}
        chosen |= {name: value for name, value in grouping.items() if value not in (None, [])}
        if self.effort:
            chosen["effort"] = self.effort
        if self.calibration is not None:
            chosen["calibration"] = self.calibration.to_dict()
            chosen |= {} if self.device == "cpu" else {"device": self.device.partition(":")[0]}
        text = json.dumps(chosen | set_)[:-1] + f', "recovered_tensors": {self.recovered:<{_WIDTH}}'
        return f'{text}, "experts": {manifest_text(self.coverage)}}}' if self.covers else f"{text}}}"
