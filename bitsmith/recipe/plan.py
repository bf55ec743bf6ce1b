"""Plan: what becomes what, and where every byte will lie, before any weight is read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitsmith.containers import CONTAINERS
from bitsmith.containers.base import Codec
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.manifest import Manifest, TensorRecord, placeholder
from bitsmith.containers.static_input import StaticInput
from bitsmith.errors import UsageError
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.quant.formats.base import Format
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.calibration_record import CalibrationRecord


@dataclass(frozen=True)
class Target:
    """`--to`: a container and the name of a format or mix in it."""

    container: str
    name: str

    def __str__(self) -> str:
        return f"{self.container}/{self.name}"

    @property
    def is_folder(self) -> bool:
        """Whether the output is a folder: all containers but GGUF."""
        return self.container != "gguf"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read "CONTAINER/NAME"; a bare name means gguf/NAME. Raises UsageError on an unknown container."""
        container, slash, name = text.strip().lower().partition("/")
        if not slash:
            container, name = "gguf", container
        if not slash and name in CONTAINERS and name != "gguf":
            raise UsageError(f"--to {text}: {name} is a container; say what goes into it, for instance {name}/int4.")
        if container not in CONTAINERS:
            raise UsageError(f"--to {text}: unknown container {container!r}; known: {', '.join(CONTAINERS)}.")
        if not name:
            raise UsageError(f"--to {text}: expected CONTAINER/FORMAT, for instance gguf/q4_k_m or native/int4.")
        return cls(container, name)


@dataclass(frozen=True)
class PlanOptions:
    """What the user chose beside the target.

    rules: "REGEX=TYPE", unparsed: the container knows its types
    keep: regular expressions; tensors whose name one of them finds stay in 16 bits
    group_size: weights that share a scale, -1: a whole row; None: the container's usual
    symmetric: None: the container's usual. These three are for gptq, awq and compressed
    filename: the output's own name
    calibration: None without one; mixes choose other types with one, as llama-quantize does with an imatrix
    method, effort: see `bitsmith.recipe.method`; effort is "" where it does not matter
    device: where calibration runs; sums differ in their last bits between devices
    """

    pure: bool = False
    rules: tuple[str, ...] = ()
    pre: str | None = None
    max_shard_bytes: int | None = None
    requantize: bool = False
    method: str = "nearest"
    effort: str = ""
    device: str = "cpu"
    filename: str = ""
    calibration: CalibrationRecord | None = None
    keep: tuple[str, ...] = ()
    group_size: int | None = None
    symmetric: bool | None = None

    def recipe(self, target: Target) -> str:
        """What decides the bytes, as one line of JSON."""
        chosen: dict[str, Any] = {"to": str(target), "method": self.method, "pure": self.pure}
        chosen |= {"rules": list(self.rules), "pre": self.pre}
        grouping = {"keep": list(self.keep), "group_size": self.group_size, "symmetric": self.symmetric}
        chosen |= {name: value for name, value in grouping.items() if value not in (None, [])}
        if self.effort:
            chosen["effort"] = self.effort
        if self.calibration is not None:
            chosen["calibration"] = self.calibration.to_dict()
            chosen |= {} if self.device == "cpu" else {"device": self.device.partition(":")[0]}
        return json.dumps(chosen)


@dataclass(frozen=True)
class RowOrder:
    """q/k rows between Hugging Face's order and GGUF's interleaved one; whole heads stay where they are."""

    heads: int
    interleave: bool


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output.

    info: its output name, shape, layout and bytes
    source: its name in the source; None for a constant
    format, codec: None for float layouts and verbatim copies
    inputs: how readers round what the matrix is multiplied with; None where they do not
    parts: shape and dtype of each stored part
    reason: why this layout
    """

    info: TensorInfo
    source: str | None
    source_layout: str
    parts: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    reason: str
    format: Format | None = None
    codec: Codec | None = None
    inputs: InputRounding | None = None
    order: RowOrder | None = None
    constant: np.ndarray | None = field(default=None, compare=False)

    @property
    def verbatim(self) -> bool:
        """Whether the stored bytes are copied as they are."""
        return self.constant is None and self.order is None and self.source_layout == self.info.layout

    @property
    def wants_input(self) -> bool:
        """Whether its codec must be told how large the weight's input gets, see `recipe.static_inputs`."""
        return isinstance(self.codec, StaticInput) and self.codec.input_rounding.scale is None and not self.verbatim


@dataclass(frozen=True)
class Plan:
    """Everything decided.

    recipe: the choices as one line of JSON, as the manifest keeps it
    layouts: the output files for a given manifest; only hashes and errors may differ between calls
    extras: small files beside the weights (native folders: configuration and tokenizer)
    """

    checkpoint: Checkpoint
    target: Target
    recipe: str
    version: str
    tensors: tuple[PlannedTensor, ...]
    layouts: Callable[[Manifest], list[FileLayout]]
    extras: Mapping[str, bytes]
    warnings: tuple[str, ...] = ()

    def manifest(self, records: Sequence[TensorRecord] | None = None) -> Manifest:
        """The manifest of `records`, or one of the same length with placeholder hashes."""
        if records is None:
            return placeholder(self.version, self.recipe, [t.info.name for t in self.tensors])
        return Manifest(self.version, self.recipe, tuple(records))

    @property
    def size(self) -> int:
        """Bytes of all output files together, exact."""
        files = self.layouts(self.manifest())
        return sum(f.size for f in files) + sum(len(data) for data in self.extras.values())

    @property
    def parameters(self) -> int:
        """Weights in the output."""
        return sum(t.info.parameters for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data a weight, over all tensors."""
        return 8 * sum(t.info.nbytes for t in self.tensors) / self.parameters


_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12}
_UNITS |= {"tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_size(text: str) -> int:
    """Bytes of "2GB" (10^9), "512MiB" (2^20), "1000000". Raises UsageError on anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise UsageError(f"{text!r} is no size; expected for instance 2GB, 512MiB or a number of bytes.")
    size = int(min(float(match[1]) * _UNITS[match[2].lower()], 1e24))
    if size <= 0:
        raise UsageError(f"{text!r}: a size must be above zero.")
    return size
