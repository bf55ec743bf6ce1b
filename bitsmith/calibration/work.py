"""The part of a plan that is rounded block by block: which tensors, and under which names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bitsmith.calibration.method import FINE_BITS, Method
from bitsmith.errors import TensorError, UsageError
from bitsmith.models.arch.block import linear_shapes
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.names import gguf_name, is_stack
from bitsmith.quant.formats.base import Format, NeedsExtent, Settled
from bitsmith.quant.formats.precision import PRECISIONS
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.recipe.coverage import MOST_STARVED, STARVED, Coverage
from bitsmith.recipe.plan import Plan, PlannedTensor
from bitsmith.recipe.rounded_rows import RoundedRows

if TYPE_CHECKING:
    from bitsmith.calibration.blockwise import BlockwiseTask, Rounded
    from bitsmith.calibration.rounding import RoundingReport
    from bitsmith.calibration.transforms.base import Rescaling

_HEAD = "output"  # rounded after the blocks
EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class BlockwiseWork:
    """The part of a plan that is rounded block by block.

    task: the task for `BlockwiseRounding`
    outputs: the place of each tensor in the output, by GGUF name
    precomputed: output names of the tensors that this work makes; all others get the nearest codes
    config: of the model
    stored_offset: whether norms are stored as Hugging Face's files store them, see `Decoder.norm_offset`
    """

    task: BlockwiseTask
    outputs: Mapping[str, Place]
    precomputed: frozenset[str]
    config: ModelConfig
    stored_offset: bool = False

    @classmethod
    def of(
        cls,
        plan: Plan,
        method: Method,
        *,
        effort: str,
        rescalings: Mapping[int, tuple[Rescaling, ...]],
        seed: int,
        norms: bool = False,
    ) -> BlockwiseWork:
        """The work of a plan. seed: seed for the order of the training windows; norms: whether norms change"""
        from bitsmith.calibration.blockwise import BlockwiseTask

        outputs = places_of(plan.tensors)
        config = plan.checkpoint.config
        formats = linears_of(plan.tensors, config)
        table = embedding_format(plan.tensors)
        task = BlockwiseTask(
            formats,
            method,
            inputs=inputs_of(plan.tensors),
            rescalings=rescalings,
            stored=_stored_norms(plan.tensors),
            effort=effort,
            seed=seed,
            stored_offset=plan.target.is_folder,
            embedding=table,
            calibrates_embedding=calibrates_embedding(table, method),
        )
        changed = _rescaled_names(rescalings)
        if norms:
            changed |= _block_norms(config)
        names = {f"{name}.weight" for name in formats} | (changed & outputs.keys())
        if task.calibrates_embedding:
            names.add(EMBEDDING)
        return cls(
            task,
            outputs,
            frozenset(outputs[name].name for name in names),
            config,
            plan.target.is_folder,
        )

    @property
    def needs_head(self) -> bool:
        """Whether the embedding needs statistics of the head's input, because it is the head, see `tied_head`."""
        return self.task.calibrates_embedding and self.config.tied

    def rows(self, rounded: Rounded) -> Iterator[RoundedRows]:
        """The rows of a step under the output's names."""
        for rows in rounded.rows:
            place = self.outputs[rows.name]
            if place.name not in self.precomputed:  # a matrix of a stack, of which only others changed
                continue
            weight = rows.weight
            offset = self.config.norm_offset(rows.name) if self.stored_offset else 0.0
            if offset:
                weight = weight - np.float32(offset)
            yield replace(rows, name=place.name, start=place.first + rows.start, weight=weight)


def embedding_format(tensors: Iterable[PlannedTensor]) -> Format | None:
    """The format of the embedding; None if it keeps its values."""
    return next((each.format for each in tensors if own_name(each) == EMBEDDING), None)


def calibrates_embedding(format: Format | None, method: Method) -> bool:
    """Whether a method rounds an embedding in a format: not if that loses next to nothing."""
    if format is None or not method.row.needs_text:
        return False
    return format.bits < FINE_BITS and not isinstance(format, NeedsExtent | Settled)


@dataclass
class Reports:
    """The reports of all steps so far, under the output's names.

    tokens: number of tokens of the calibration
    every: whether every token counts for every expert
    routed: tokens that each expert got, by layer
    """

    work: BlockwiseWork
    tokens: int = 0
    every: bool = False
    by_name: dict[str, RoundingReport] = field(default_factory=dict)
    routed: dict[int, np.ndarray] = field(default_factory=dict)

    def add(self, rounded: Rounded) -> None:
        """Add the reports of a step; reports on rows of one matrix are joined.

        Raises UsageError if too many experts saw too few tokens.
        """
        from bitsmith.calibration.rounding import RoundingReport

        for linear, said in rounded.reports.items():
            place = self.work.outputs[f"{linear}.weight"]
            name = place.name if place.expert is None else f"{place.name}, expert {place.expert}"
            before = [self.by_name[name]] if name in self.by_name else []
            self.by_name[name] = RoundingReport.joined([*before, said])
        self.routed |= rounded.routed
        self._check()

    def add_values(self, values: Mapping[str, Any]) -> None:
        """Add the reports of a step as `reports_to_values` gave them."""
        from bitsmith.calibration.blockwise import Rounded
        from bitsmith.calibration.kept_rows import reports_from_values

        self.add(Rounded((), reports_from_values(values)))

    def _check(self) -> None:
        if self.coverage is not None and not self.every:
            check_coverage(self.coverage, self.work.task.formats)

    @property
    def coverage(self) -> Coverage | None:
        """Tokens that each expert saw so far; None for a model without experts."""
        return Coverage(self.routed, self.tokens, self.every) if self.routed else None


def check_coverage(coverage: Coverage, linears: Collection[str]) -> None:
    """Raise UsageError if the text starves more experts than `MOST_STARVED` of all whose matrices are rounded.

    linears: GGUF names, without ".weight", of all rounded linears of the model
    """
    experts = {tuple(name.split(".")[1::2]) for name in linears if "_exps." in name}  # layer and number
    rounded = {layer: counts for layer, counts in coverage.counts.items() if (str(layer), "0") in experts}
    if not rounded:
        return
    found = Coverage(rounded, coverage.tokens)
    if len(found.starved) <= MOST_STARVED * len(experts):
        return
    raise UsageError(
        f"the calibration text reaches too few experts: {len(found.starved):,} of the first "
        f"{found.summary['experts']:,} experts saw fewer than {STARVED} tokens. Give about "
        f"--calibration-tokens={found.tokens_needed}, a text that is closer to what the model is for, "
        "--calibration-all-experts, or --method=nearest."
    )


def inputs_of(tensors: Iterable[PlannedTensor]) -> dict[str, InputRounding]:
    """How the inputs of linears are rounded, by GGUF name without ".weight"."""
    return {own_name(tensor).removesuffix(".weight"): tensor.inputs for tensor in tensors if tensor.inputs is not None}


class Place(NamedTuple):
    """Where a tensor of the decoder lies in the output: its name there, its first row, and its number in a stack."""

    name: str
    first: int = 0
    expert: int | None = None


def places_of(tensors: Iterable[PlannedTensor]) -> dict[str, Place]:
    """The place of each tensor in the output, by GGUF name; of a stack of experts also that of each expert."""
    found = {}
    for tensor in tensors:
        name, info = own_name(tensor), tensor.info
        found[name] = Place(info.name)
        if is_stack(name) and len(info.shape) == 3:
            for e in range(info.shape[0]):
                found[f"{name.removesuffix('.weight')}.{e}.weight"] = Place(info.name, e * info.shape[1], e)
    return found


def own_names(tensors: Iterable[PlannedTensor]) -> dict[str, str]:
    """The output's name of each tensor, by GGUF name."""
    return {name: place.name for name, place in places_of(tensors).items()}


@contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Within it, errors name tensors as the plan does.

    names: the output's name of each tensor, by GGUF name
    """
    try:
        yield
    except TensorError as error:
        known = names.get(error.tensor, names.get(f"{error.tensor}.weight"))
        if known is None or known == error.tensor:
            raise
        raise error.renamed(known) from error


def own_name(tensor: PlannedTensor) -> str:
    """The GGUF name of a tensor, or its own name if GGUF has none."""
    return tensor.own or gguf_name(tensor.info.name) or tensor.info.name


def linears_of(tensors: Iterable[PlannedTensor], config: ModelConfig) -> dict[str, Format]:
    """Formats of the rounded linears of all blocks and of the head, by GGUF name without ".weight"."""
    linears = {f"blk.{layer}.{name}" for layer in range(config.layers) for name in linear_shapes(config, layer)}
    if not config.tied:
        linears.add(_HEAD)
    formats: dict[str, Format] = {}
    for tensor in tensors:
        if tensor.format is None:
            continue
        for name in places_of((tensor,)):
            if name.removesuffix(".weight") in linears:
                formats[name.removesuffix(".weight")] = tensor.format
    return formats


def _block_norms(config: ModelConfig) -> set[str]:
    """GGUF names of the norms before and after the operations of all blocks."""
    return {f"blk.{layer}.{name}.weight" for layer in range(config.layers) for name in config.family.norms.names}


def _rescaled_names(rescalings: Mapping[int, tuple[Rescaling, ...]]) -> set[str]:
    """GGUF names of all tensors that rescalings change."""
    names = set()
    for layer, found in rescalings.items():
        for rescaling in (each for each in found if each.changes):
            linears = (*rescaling.group.linears, rescaling.group.producer)
            names |= {f"blk.{layer}.{name}.weight" for name in linears}
            names.add(f"blk.{layer}.{rescaling.group.producer}.bias")
    return names


def _stored_norms(tensors: Iterable[PlannedTensor]) -> dict[str, np.dtype]:
    """The 16-bit types in which norms are stored, by name within a block."""
    found = {}
    for tensor in tensors:
        name = own_name(tensor).removesuffix(".weight").split(".")[-1]
        if name.endswith("_norm") and tensor.info.layout in ("f16", "bf16"):
            found[name] = PRECISIONS[tensor.info.layout]
    return found
