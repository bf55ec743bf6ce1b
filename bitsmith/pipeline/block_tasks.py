"""The functions of tasks that round a model block by block: sums over some windows, linears of a group, hidden states.

Each task finds the weights in the model's files, and the codes of linears that were rounded before in the results of
other tasks. So no task needs more than one block, a Hessian, and the hidden states of some windows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bitsmith.calibration.beside import WindowStates
from bitsmith.calibration.block_states import BlockStates
from bitsmith.calibration.blockwise import BlockSteps
from bitsmith.calibration.collect import HEAD, block_loader, decoder_without_blocks, embed, require_finite
from bitsmith.calibration.drift import Drift, Half
from bitsmith.calibration.inputs import advance_part, portions
from bitsmith.calibration.kept_rows import reports_to_values, rows_from_arrays, rows_to_arrays
from bitsmith.calibration.method import Method
from bitsmith.calibration.rounding import rounded_group, with_shared_extent
from bitsmith.calibration.stats import Stats
from bitsmith.calibration.stored_embedding import StoredEmbedding
from bitsmith.calibration.tied_head import from_state
from bitsmith.calibration.work import BlockwiseWork
from bitsmith.models.arch.block import Part, parts_of
from bitsmith.models.arch.operations.base import LinearGroup
from bitsmith.pipeline.planned import plan_of
from bitsmith.quant.rounders.effort import EFFORTS
from bitsmith.quant.rounders.slabs import SLAB_ROWS
from bitsmith.quant.tensor import QuantTensor
from bitsmith.recipe.rounded_rows import RoundedRows
from bitsmith.runtime.torch.products import fast_products, with_rounded_products
from bitsmith.runtime.weights import Block
from bitsmith.scale.task import Function, Place, Result
from bitsmith.work.state import State

_ROWS = 512  # of a matrix of sums that are added at a time
HEAD_SLABS = 8  # slabs of the head's rows that one task rounds
_CPU = "cpu"


@dataclass(frozen=True)
class BlockPlace:
    """Where in the model a task works: a stage of a part of a block, and the portion of the stage's groups."""

    layer: int
    part: int
    stage: int = 0
    portion: int = 0

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> BlockPlace:
        """From the arguments of a task."""
        return cls(*(int(arguments[name]) for name in ("layer", "part", "stage", "portion")))


class BlockWork:
    """What all tasks of a run share in one process: the plan, the decoder, and the block at hand."""

    def __init__(self, told: Mapping[str, Any], head: Stats | None = None) -> None:
        """told: what `spread_blocks` says of the run; head: see `StoredEmbedding.of`

        Raises FileError if the model or its plan is another here.
        """
        self.head = head
        plan = plan_of(json.dumps(told["plan"], sort_keys=True))
        self.config = plan.checkpoint.config
        work = BlockwiseWork.of(
            plan, Method.parse(told["method"]), effort=told["effort"], rescalings={}, seed=int(told["seed"])
        )
        self.task = work.task
        self.loader = block_loader(plan.checkpoint, _CPU)
        self.steps = BlockSteps(decoder_without_blocks(self.loader), self.task)
        self.follows = self.task.method.hidden_state_buffers(self.task.effort) > 1
        self._block: tuple[int, Block] | None = None

    @cached_property
    def embedding(self) -> StoredEmbedding | None:
        """The embedding as the output stores it; None for floats."""
        return StoredEmbedding.of_task(self.loader, self.task, self.head)

    def start(self, layer: int) -> Block:
        """The block as the model has it; the last one stays in memory."""
        if self._block is None or self._block[0] != layer:
            self._block = None  # its memory is free before the next is read
            block = self.loader.block(layer)
            require_finite(block, f"blk.{layer}.")
            self._block = layer, with_rounded_products(block, self.steps.coarse(layer))
        return self._block[1]

    def rounded(self, layer: int, made: Sequence[State]) -> Block:
        """The block with the linears that are rounded so far. made: the results of `round_linears`"""
        codes = dict[str, QuantTensor]()
        for rows in (rows for state in made for rows in self.rows(state)):
            assert rows.tensor is not None
            codes[rows.name.removeprefix(f"blk.{layer}.").removesuffix(".weight")] = rows.tensor
        return self.steps.with_codes(layer, self.start(layer), codes)

    def rows(self, state: State) -> list[RoundedRows]:
        """The rows of a result of `round_linears`, without their weights."""
        return rows_from_arrays(state.values["rows"], state, self.task.formats)

    def part(self, at: BlockPlace) -> Part:
        """The part of the block."""
        return parts_of(self.config, at.layer)[at.part]

    def groups(self, at: BlockPlace) -> tuple[LinearGroup, ...]:
        """The groups of a portion of a stage of which something is rounded."""
        part = self.part(at)
        stage = part.operation.stages(self.config, at.layer, part.before)[at.stage]
        wanted = tuple(group for group in stage if self.steps.formats_of(at.layer, group))
        return list(portions(wanted, self.start(at.layer)))[at.portion]


_last: dict[str, BlockWork] = {}  # of the last task in this process


def _work(described: State, place: Place) -> BlockWork:
    torch.set_num_threads(place.threads)
    text = json.dumps(described.values, sort_keys=True)
    if text not in _last:
        _last.clear()
        _last[text] = BlockWork(described.values, from_state(described))
    return _last[text]


def _states(work: BlockWork, arguments: Mapping[str, Any], tokens: State, hidden: State) -> BlockStates:
    """The hidden states of a task's windows."""
    own = tokens.rows("tokens", int(arguments["start"]), int(arguments["stop"]))
    states = [WindowStates(work.config, own) for _ in range(1 + work.follows)]
    for each, name in zip(states, ("hidden", "truth"), strict=False):
        each.take(hidden, name if name in hidden else "hidden")
    return BlockStates(states[0], states[1] if work.follows else None)


def embed_windows(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
    """The input of the first block for some windows, float32 [windows, context, hidden].

    arguments: start, stop: the windows
    inputs: the run; its tokens, int64 [windows, context]
    """
    work = _work(inputs[0], place)
    own = inputs[1].rows("tokens", int(arguments["start"]), int(arguments["stop"]))
    stored = work.embedding
    hidden = embed(work.steps.decoder if stored is None else stored.followed(work.steps.decoder, own), own)
    found = {"hidden": hidden.streamed()}
    if work.follows and stored is not None:
        found["truth"] = embed(work.steps.decoder, own).streamed()
    return {}, found


def sum_inputs(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
    """Gram matrices and drifts of the inputs of a portion's groups over some windows, by the number of the group.

    arguments: of `BlockPlace`; layer is the number of layers for the head; start, stop: the windows
    inputs: the run; its tokens; hidden states; results of `round_linears` of the block before this portion
    """
    work, at = _work(inputs[0], place), BlockPlace.of(arguments)
    states = _states(work, arguments, inputs[1], inputs[2])
    with fast_products(_CPU):
        if at.layer == work.config.layers:
            compared = [work.steps.head_compared(states, work.loader.read(f"{HEAD}.weight"))]
        else:
            block, groups = work.rounded(at.layer, inputs[3:]), work.groups(at)
            found = work.steps.compared(at.layer, work.part(at), groups, block, work.start(at.layer), states)
            compared = [found[group] for group in groups]
    arrays: dict[str, np.ndarray] = {}
    for number, seen in enumerate(compared):
        stats, drift = seen.taken()
        arrays[f"{number}.gram"] = _numpy(stats.gram)
        if drift is not None and drift.half is not None:
            arrays[f"{number}.drift"] = _numpy(drift.total)
            arrays[f"{number}.half"] = _numpy(drift.half.seen)
            arrays[f"{number}.probe"] = _numpy(drift.half.probe)
    counts, halves = [seen.meter.count for seen in compared], [seen.half.result().count for seen in compared]
    return {"counts": counts, "halves": halves}, arrays


def _numpy(x: Any) -> np.ndarray:
    return np.ascontiguousarray(x.numpy(), np.float32)


def _total(inputs: Sequence[State], number: int) -> tuple[Stats, Drift | None]:
    """The statistics of an input over all windows, and its drift: sums of all parts, in their order."""
    gram = _summed(inputs, f"{number}.gram")
    count = sum(int(state.values["counts"][number]) for state in inputs)
    empty = np.zeros(0, np.float32)
    sample = np.zeros((0, len(gram)), np.float32)
    stats = Stats(count, np.diagonal(gram).astype(np.float64), empty, empty, torch.from_numpy(gram), sample)
    if f"{number}.drift" not in inputs[0]:
        return stats, None
    total, seen = (torch.from_numpy(_summed(inputs, f"{number}.{name}")) for name in ("drift", "half"))
    probe = torch.from_numpy(inputs[0].array(f"{number}.probe").copy())
    half = Half(probe, seen, sum(int(state.values["halves"][number]) for state in inputs))
    return stats, Drift(total, half)


def _summed(inputs: Sequence[State], name: str) -> np.ndarray:
    """The sum of an array of all parts, in their order; of the later parts, some rows are in memory at a time."""
    total = inputs[0].array(name)
    for state in inputs[1:]:
        for start in range(0, len(total), _ROWS):
            total[start : start + _ROWS] += state.rows(name, start, min(start + _ROWS, len(total)))
    return total


def round_linears(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
    """The codes of some linears of a group, or of some rows of the head.

    arguments: of `BlockPlace`; group: its number in the portion; names: of the linears; first, last: the head's slabs
    inputs: the run; results of `sum_inputs` of all windows, in order
    """
    work, at = _work(inputs[0], place), BlockPlace.of(arguments)
    with fast_products(_CPU):
        rounder = work.task.method.row.linear(
            *_total(inputs[1:], int(arguments.get("group", 0))), EFFORTS[work.task.effort]
        )
    if at.layer == work.config.layers:
        weight = work.loader.read(f"{HEAD}.weight")
        slabs = range(int(arguments["first"]), int(arguments["last"]))
        made = [work.steps.head_slab(rounder, weight, slab * SLAB_ROWS) for slab in slabs]
        values, arrays = rows_to_arrays([_weightless(each) for step in made for each in step.rows])
        return {"rows": values, "reports": [reports_to_values(step.reports) for step in made]}, arrays
    group, start, prefix = work.groups(at)[int(arguments["group"])], work.start(at.layer), f"blk.{at.layer}."
    linears = {name: start.linears[name].prepared for name in group.linears}
    wanted = work.steps.formats_of(at.layer, group)
    formats = with_shared_extent({name: (linears[name], format) for name, format in wanted.items()})
    with fast_products(_CPU):
        own = {name: (linears[name], formats[name]) for name in arguments["names"]}
        found = rounded_group(rounder, prefix, own)
    none = np.zeros((0, 0), np.float32)
    rows = [RoundedRows(f"{prefix}{name}.weight", 0, none, tensor) for name, (tensor, _) in found.items()]
    reports = reports_to_values({prefix + name: said for name, (_, said) in found.items()})
    values, arrays = rows_to_arrays(rows)
    return {"rows": values, "reports": [reports]}, arrays


def _weightless(rows: RoundedRows) -> RoundedRows:
    """The rows without the weights that they stand for: the head reads these from the model."""
    return replace(rows, weight=np.zeros((0, 0), np.float32))


def advance_windows(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
    """Hidden states of some windows behind a part of a block, float32 [windows, context, hidden].

    arguments: of `BlockPlace`; start, stop: the windows
    inputs: the run; its tokens; hidden states before the part; results of `round_linears` of the block so far
    """
    work, at = _work(inputs[0], place), BlockPlace.of(arguments)
    states, part = _states(work, arguments, inputs[1], inputs[2]), work.part(at)
    with fast_products(_CPU):
        advance_part(work.steps.decoder, at.layer, part, work.rounded(at.layer, inputs[3:]), states.hidden)
        found = {"hidden": states.hidden.streamed()}
        if states.truth is not None:
            advance_part(work.steps.decoder, at.layer, part, work.start(at.layer), states.truth)
            found["truth"] = states.truth.streamed()
    return {}, found


BLOCK_TASKS: dict[str, Function] = {
    "embed": embed_windows,
    "sums": sum_inputs,
    "linears": round_linears,
    "advance": advance_windows,
}
