"""Plan: what becomes what, and where every byte will lie, before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bitsmith.containers.base import Codec
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.manifest import Manifest, TensorRecord, placeholder
from bitsmith.containers.static_input import StaticInput
from bitsmith.errors import TensorError, UsageError
from bitsmith.models.arch.names import gguf_name
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.quant.formats.base import Format
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.recipe import PlanOptions, Recipe
from bitsmith.recipe.target import Target
from bitsmith.version import __version__


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
    def linear(self) -> str | None:
        """GGUF's name of the linear it belongs to, without ".weight"; None for names without one."""
        name = gguf_name(self.info.name)
        return None if name is None else name.removesuffix(".weight")

    @property
    def wants_input(self) -> bool:
        """Whether its codec stores the scale of its input, and does not know it yet."""
        return isinstance(self.codec, StaticInput) and self.codec.input_rounding.scale is None and not self.verbatim

    def with_input_absmax(self, absmax: Mapping[str, float]) -> PlannedTensor:
        """The tensor with the scale of its input; the same where it stores none.

        absmax: largest magnitude of each linear's input, by GGUF name without ".weight"
        Raises UsageError where its linear is not among them, TensorError where a scale does not fit its precision.
        """
        if not self.wants_input:
            return self
        assert isinstance(self.codec, StaticInput)
        seen = absmax.get(self.linear or "")
        if seen is None:
            raise UsageError(
                f"{self.info.name}: the calibration has not seen its input, whose range {self.info.layout} stores; "
                "calibrate on this model, with --calibration default or a text."
            )
        try:
            codec = self.codec.with_input_absmax(seen)
        except TensorError as error:
            raise TensorError(f"{self.info.name}: {error}") from error
        return replace(self, codec=codec, inputs=codec.input_rounding)


@dataclass(frozen=True)
class Assignment:
    """The type of every tensor of an output, and where its bytes will lie. Everything unsupported failed before.

    layouts: the output files for a given manifest; only hashes and errors may differ between calls
    extras: small files beside the weights: configuration and tokenizer of a folder
    """

    checkpoint: Checkpoint
    target: Target
    options: PlanOptions
    tensors: tuple[PlannedTensor, ...]
    layouts: Callable[[Manifest], list[FileLayout]]
    extras: Mapping[str, bytes]
    warnings: tuple[str, ...] = ()

    @property
    def formats(self) -> tuple[Format, ...]:
        """Formats of the tensors that are quantized."""
        return tuple(tensor.format for tensor in self.tensors if tensor.format is not None)

    @property
    def inputs(self) -> tuple[InputRounding, ...]:
        """How inputs of products are rounded, for the tensors where they are."""
        return tuple(tensor.inputs for tensor in self.tensors if tensor.inputs is not None)


@dataclass(frozen=True)
class Plan:
    """An assignment and its recipe: what `execute` carries out. Made once everything is known, never changed.

    recipe: what decides the bytes, as the manifest keeps it
    tensors: those of the assignment, with the measured ranges of their inputs
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

        recipe: None: nearest codes without calibration
        input_absmax: largest magnitude of each linear's input, by GGUF name without ".weight", for scales that are
            stored; None where it is not measured yet: such a plan has the right sizes, but cannot be carried out
        warnings: beside those of the assignment
        Raises UsageError for a linear that was not measured, TensorError where a scale does not fit its precision.
        """
        tensors = assignment.tensors
        if input_absmax is not None:
            tensors = tuple(tensor.with_input_absmax(input_absmax) for tensor in tensors)
        recipe = recipe or Recipe(assignment.target, assignment.options)
        return cls(assignment, recipe, tensors, (*assignment.warnings, *warnings))

    @property
    def checkpoint(self) -> Checkpoint:
        """The source."""
        return self.assignment.checkpoint

    @property
    def target(self) -> Target:
        """Container and format."""
        return self.assignment.target

    @property
    def extras(self) -> Mapping[str, bytes]:
        """Small files beside the weights."""
        return self.assignment.extras

    def layouts(self, records: Sequence[TensorRecord] | None = None) -> list[FileLayout]:
        """The output files, for the manifest of `records` or for one of the same size."""
        return self.assignment.layouts(self.manifest(records))

    def manifest(self, records: Sequence[TensorRecord] | None = None) -> Manifest:
        """The manifest of `records`, or one of the same size with placeholder hashes."""
        recipe = self.recipe.to_json()
        if records is None:
            return placeholder(__version__, recipe, [tensor.info.name for tensor in self.tensors])
        return Manifest(__version__, recipe, tuple(records))

    @property
    def size(self) -> int:
        """Bytes of all output files together, exact."""
        return sum(file.size for file in self.layouts()) + sum(len(data) for data in self.extras.values())

    @property
    def parameters(self) -> int:
        """Weights in the output."""
        return sum(tensor.info.parameters for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data a weight, over all tensors."""
        return 8 * sum(tensor.info.nbytes for tensor in self.tensors) / self.parameters
