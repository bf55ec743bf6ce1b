"""The part of a plan that is rounded block by block: which tensors, and under which names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.calibration.method import Method
from bitsmith.errors import TensorError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.groups import linear_groups
from bitsmith.models.arch.names import gguf_name
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.precision import PRECISIONS
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.recipe.plan import Plan, PlannedTensor
from bitsmith.recipe.rounded_rows import RoundedRows

if TYPE_CHECKING:
    from bitsmith.calibration.blockwise import BlockwiseTask, Rounded
    from bitsmith.calibration.rounding import RoundingReport
    from bitsmith.calibration.transforms.base import Rescaling

_HEAD = "output"  # rounded after the blocks


@dataclass(frozen=True)
class BlockwiseWork:
    """The part of a plan that is rounded block by block.

    task: the task for `BlockwiseRounding`
    outputs: the output's name of each tensor, by GGUF name
    precomputed: output names of the tensors that this work makes; all others get the nearest codes
    """

    task: BlockwiseTask
    outputs: Mapping[str, str]
    precomputed: frozenset[str]

    @classmethod
    def of(
        cls,
        plan: Plan,
        method: Method,
        *,
        effort: str,
        rescalings: Mapping[int, tuple[Rescaling, ...]],
        seed: int,
    ) -> BlockwiseWork:
        """The work of a plan. seed: seed for the order of the training windows"""
        from bitsmith.calibration.blockwise import BlockwiseTask

        outputs = own_names(plan.tensors)
        formats = linears_of(plan.tensors, plan.checkpoint.config)
        task = BlockwiseTask(
            formats,
            method,
            inputs=inputs_of(plan.tensors),
            rescalings=rescalings,
            stored=_stored_norms(plan.tensors),
            effort=effort,
            seed=seed,
        )
        names = {f"{name}.weight" for name in formats} | (_rescaled_names(rescalings) & outputs.keys())
        return cls(task, outputs, frozenset(outputs[name] for name in names))

    def rows(self, rounded: Rounded) -> Iterator[RoundedRows]:
        """The rows of a step under the output's names."""
        return (replace(rows, name=self.outputs[rows.name]) for rows in rounded.rows)


@dataclass
class Reports:
    """The reports of all steps so far, under the output's names."""

    work: BlockwiseWork
    by_name: dict[str, RoundingReport] = field(default_factory=dict)

    def add(self, rounded: Rounded) -> None:
        """Add the reports of a step; reports on rows of one matrix are joined."""
        from bitsmith.calibration.rounding import RoundingReport

        for linear, said in rounded.reports.items():
            name = self.work.outputs[f"{linear}.weight"]
            before = [self.by_name[name]] if name in self.by_name else []
            self.by_name[name] = RoundingReport.joined([*before, said])


def inputs_of(tensors: Iterable[PlannedTensor]) -> dict[str, InputRounding]:
    """How the inputs of linears are rounded, by GGUF name without ".weight"."""
    return {own_name(tensor).removesuffix(".weight"): tensor.inputs for tensor in tensors if tensor.inputs is not None}


def own_names(tensors: Iterable[PlannedTensor]) -> dict[str, str]:
    """The output's name of each tensor, by GGUF name."""
    return {own_name(tensor): tensor.info.name for tensor in tensors}


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
    return gguf_name(tensor.info.name) or tensor.info.name


def linears_of(tensors: Iterable[PlannedTensor], config: ModelConfig) -> dict[str, Format]:
    """Formats of the rounded linears of all blocks and of the head, by GGUF name without ".weight"."""
    linears = {name for group in linear_groups(config) for name in group.linears}
    formats: dict[str, Format] = {}
    for tensor in tensors:
        name = own_name(tensor).removesuffix(".weight")
        in_block = name.startswith("blk.") and name.split(".")[-1] in linears
        if tensor.format is not None and (in_block or (name == _HEAD and not config.tied)):
            formats[name] = tensor.format
    return formats


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
