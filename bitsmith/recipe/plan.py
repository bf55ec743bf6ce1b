"""Plan: the type of every tensor and the place of every byte, decided before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsmith.containers.base import Codec
from bitsmith.containers.destination import Destination
from bitsmith.containers.gguf.metadata_values import Value
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.manifest import Manifest, TensorRecord, placeholder
from bitsmith.containers.settings import file_settings, key_settings
from bitsmith.containers.static_input import StaticInput
from bitsmith.errors import TensorError, UsageError, Words
from bitsmith.models.arch.names import gguf_name
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.quant.formats.base import Format
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.coverage import Coverage
from bitsmith.recipe.recipe import QUANTIZE, PlanOptions, Recipe
from bitsmith.recipe.target import Target
from bitsmith.version import __version__

if TYPE_CHECKING:
    from bitsmith.recipe.census import Census


@dataclass(frozen=True)
class RowOrder:
    """How the rows of q and k move between Hugging Face's order and GGUF's interleaved order, inside each head.

    heads: number of heads of the tensor
    interleave: True towards GGUF's order, False back
    """

    heads: int
    interleave: bool


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output.

    info: name, shape, layout and bytes in the output
    source: name in the source; None for a constant
    format, codec: None for float layouts and for copies
    inputs: how readers round the inputs of this matrix; None if they do not
    parts: shape and dtype of each stored part
    reason: why it gets this layout
    copied: whether the bytes are copied without a look at their values, whatever they mean
    together: sources of this tensor and those that share its extent, where its format has one scale for all of them
    own: GGUF's name of the tensor, that of an expert's matrix included ("blk.0.ffn_up_exps.3.weight"); "" to find it
        by the usual names
    outside: whether it is not of the text decoder, or lies transposed, so that it stays in 16 bits
    on_grid: whether some of its rows lie on the format's grid already, see `quant.lattice`
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
    copied: bool = False
    together: tuple[str, ...] = ()
    own: str = ""
    outside: bool = False
    on_grid: bool = False

    @property
    def verbatim(self) -> bool:
        """Whether the stored bytes are copied without change."""
        return self.constant is None and self.order is None and self.source_layout == self.info.layout

    @property
    def linear(self) -> str | None:
        """GGUF's name of the tensor's linear, without ".weight"; None if GGUF has no name for it."""
        name = self.own or gguf_name(self.info.name)
        return None if name is None else name.removesuffix(".weight")

    @property
    def wants_input(self) -> bool:
        """Whether the codec stores a scale of the input and the scale is not known yet."""
        return isinstance(self.codec, StaticInput) and self.codec.input_rounding.scale is None and not self.verbatim

    def with_input_absmax(self, absmax: Mapping[str, float]) -> PlannedTensor:
        """The tensor with the scale of its input. A tensor that stores none does not change.

        absmax: largest magnitude of each linear's input, by GGUF name without ".weight"
        Raises UsageError if the tensor's linear is missing, TensorError if a scale does not fit its precision.
        """
        if not self.wants_input:
            return self
        assert isinstance(self.codec, StaticInput)
        seen = absmax.get(self.linear or "")
        if seen is None:
            raise UsageError(
                f"{self.info.name}: the calibration has not seen its input, and {self.info.layout} stores the range of "
                "that input; calibrate on this model, with --calibration=default or a text."
            )
        try:
            codec = self.codec.with_input_absmax(seen)
        except TensorError as error:
            raise error.at(self.info.name) from error
        return replace(self, codec=codec, inputs=codec.rounding)


@dataclass(frozen=True)
class Assignment:
    """The type of every tensor of an output, and the place of its bytes. It holds only what is supported.

    layouts: gives the output files for a manifest; between calls only hashes and errors may differ
    extras: small files beside the weights: config.json and tokenizer files of a folder
    command, origin: see `Recipe`
    keys: the keys of a GGUF file, without those of the manifest
    """

    checkpoint: Checkpoint
    target: Target
    options: PlanOptions
    tensors: tuple[PlannedTensor, ...]
    layouts: Callable[[Manifest], list[FileLayout]]
    extras: Mapping[str, bytes]
    warnings: tuple[str, ...] = ()
    command: str = QUANTIZE
    origin: Mapping[str, Any] | None = None
    keys: Mapping[str, Value] = field(default_factory=dict)

    @cached_property
    def settings(self) -> dict[str, str]:
        """Hashes of chat template, tokenizer and configuration, for the manifest."""
        return {**key_settings(self.keys), **file_settings(self.extras)}

    @cached_property
    def census(self) -> Census:
        """Where each weight of the source lands; nothing is written without it. Raises as `take_census`."""
        from bitsmith.recipe.census import take_census

        return take_census(self)

    @property
    def keeps_bytes(self) -> bool:
        """Whether every tensor is copied as it is."""
        return all(tensor.copied for tensor in self.tensors)

    @property
    def formats(self) -> tuple[Format, ...]:
        """Formats of the quantized tensors."""
        return tuple(tensor.format for tensor in self.tensors if tensor.format is not None)

    @property
    def inputs(self) -> tuple[InputRounding, ...]:
        """The input roundings of all tensors that have one."""
        return tuple(tensor.inputs for tensor in self.tensors if tensor.inputs is not None)


@dataclass(frozen=True)
class Plan:
    """An assignment and its recipe, for the executor. It is made once everything is known, and never changed.

    recipe: everything that decides the bytes, for the manifest
    tensors: tensors of the assignment, with the measured ranges of their inputs
    """

    assignment: Assignment
    recipe: Recipe
    tensors: tuple[PlannedTensor, ...]
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        assignment: Assignment,
        recipe: Recipe | None = None,
        *,
        input_absmax: Mapping[str, float] | None = None,
        warnings: Sequence[str] = (),
    ) -> Plan:
        """The plan of an assignment.

        recipe: None for nearest codes without calibration
        input_absmax: largest magnitude of each linear's input, by GGUF name without ".weight", for stored scales; None
            if not measured yet: the plan then has the right sizes, but cannot be executed
        warnings: further warnings beside those of the assignment
        Raises UsageError for a linear that was not measured, TensorError if a scale does not fit its precision.
        """
        tensors = assignment.tensors
        if input_absmax is not None:
            tensors = tuple(tensor.with_input_absmax(input_absmax) for tensor in tensors)
        recipe = recipe or Recipe(assignment.target, assignment.options, source=assignment.checkpoint.name)
        return cls(assignment, recipe, tensors, tuple(Words(each) for each in (*assignment.warnings, *warnings)))

    @property
    def checkpoint(self) -> Checkpoint:
        """The source model."""
        return self.assignment.checkpoint

    @property
    def target(self) -> Target:
        """Container and format."""
        return self.assignment.target

    @property
    def extras(self) -> Mapping[str, bytes]:
        """Small files beside the weights."""
        return self.assignment.extras

    def with_coverage(self, coverage: Coverage | None) -> Plan:
        """The same with what experts saw of the calibration text, once that is known. The sizes do not change."""
        return self if coverage is None else replace(self, recipe=replace(self.recipe, coverage=coverage))

    def with_recovered(self, count: int) -> Plan:
        """The same with the number of tensors that lay on their format's grid, once that is known."""
        return replace(self, recipe=replace(self.recipe, recovered=count))

    def destination(self, target: Path) -> Destination:
        """The output at `target`, with its exact sizes."""
        return Destination(target, self.layouts(), self.extras, self.target.is_folder)

    def layouts(self, records: Sequence[TensorRecord] | None = None) -> list[FileLayout]:
        """The output files with the manifest of `records`; without records, with placeholder hashes."""
        return self.assignment.layouts(self.manifest(records))

    def manifest(self, records: Sequence[TensorRecord] | None = None) -> Manifest:
        """The manifest of `records`; without records, a manifest of the same size with placeholder hashes."""
        recipe = self.recipe.to_json()
        if records is None:
            names = [tensor.info.name for tensor in self.tensors]
            return placeholder(__version__, recipe, names, self.assignment.settings)
        return Manifest(__version__, recipe, tuple(records), self.assignment.settings)

    @property
    def size(self) -> int:
        """Exact bytes of all output files together."""
        return sum(file.size for file in self.layouts()) + sum(len(data) for data in self.extras.values())

    @property
    def parameters(self) -> int:
        """Number of weights in the output."""
        return sum(tensor.info.parameters for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight, over all tensors."""
        return 8 * sum(tensor.info.nbytes for tensor in self.tensors) / self.parameters
