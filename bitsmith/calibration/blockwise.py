"""Rounding block by block: each block sees the inputs that the rounded blocks before it produce."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.beside import WindowStates
from bitsmith.calibration.collect import (
    HEAD,
    RecordedLinear,
    decoder_without_blocks,
    embed,
    not_finite,
    require_finite,
)
from bitsmith.calibration.folding import block_tensors, folded, with_tensors
from bitsmith.calibration.method import Method
from bitsmith.calibration.resources import Resources
from bitsmith.calibration.rounding import STARVED, LinearRounder, RoundingReport, plain_nearest
from bitsmith.calibration.sources import CalibrationTokens
from bitsmith.calibration.stats import GramMeter, Stats
from bitsmith.calibration.trainable import Start
from bitsmith.calibration.transforms.base import Rescaling
from bitsmith.errors import TensorError
from bitsmith.models.arch.block import Part, part_groups, parts_of
from bitsmith.models.arch.operations.base import LinearGroup
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.quant.formats.base import Format
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.rounders.effort import EFFORTS, Effort
from bitsmith.quant.rounders.gptq import SLAB_ROWS
from bitsmith.quant.tensor import QuantTensor
from bitsmith.recipe.rounded_rows import RoundedRows
from bitsmith.runtime.decoder import Decoder, Pass
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import Block, WeightLoader, weight_reader
from bitsmith.system.memory import available_memory
from bitsmith.system.progress import Report, silent


@dataclass(frozen=True)
class BlockwiseTask:
    """How to round a model's blocks.

    formats: format of each linear, by GGUF name without ".weight" ("blk.0.attn_q", "output"); other linears keep
        their weights
    inputs: how the inputs of linears are rounded, by the same names
    rescalings: the rescalings of each layer, found on the original model
    stored, stored_offset: how norms are stored, see `folded`
    effort: a name in `EFFORTS`
    seed: seed for the order of the training windows
    """

    formats: Mapping[str, Format]
    method: Method
    inputs: Mapping[str, InputRounding] = field(default_factory=dict)
    rescalings: Mapping[int, tuple[Rescaling, ...]] = field(default_factory=dict)
    stored: Mapping[str, np.dtype] = field(default_factory=dict)
    effort: str = "normal"
    seed: int = 0
    stored_offset: bool = False


@dataclass(frozen=True)
class Rounded:
    """The result of one step.

    rows: rows to store, under GGUF names: the rounded linears and the other rescaled tensors
    reports: the report of each linear, by name without ".weight"
    """

    rows: tuple[RoundedRows, ...]
    reports: Mapping[str, RoundingReport]


class BlockwiseRounding:
    """Rounds a model step by step: `block(0)`, `block(1)`, ..., then the slabs of the head.

    Each block sees the inputs that the rounded blocks before it produce. Linears of a group share their statistics.
    The groups of a block are rounded in the order in which they are computed. Memory holds the weights of one block
    in float32, one Hessian and its factor. The same tokens give the same codes.
    """

    def __init__(
        self, checkpoint: Checkpoint, tokens: CalibrationTokens, task: BlockwiseTask, resources: Resources
    ) -> None:
        """Embed the tokens."""
        if resources.threads is not None:
            torch.set_num_threads(resources.threads)
        device = resources.device
        self.layers = checkpoint.config.layers
        self._loader = WeightLoader(
            checkpoint.config, weight_reader(checkpoint), DenseKernel(device=device), TorchOps(device), device
        )
        self._steps = _Steps(decoder_without_blocks(self._loader), task)
        self._next = 0
        buffers = task.method.hidden_state_buffers(task.effort)
        share = _share(resources.memory, buffers)
        self._hidden = embed(self._steps.decoder, tokens.tokens, memory=share)
        self._truth = embed(self._steps.decoder, tokens.tokens, memory=share) if buffers > 1 else None

    def block(self, layer: int, report: Report = silent) -> Rounded:
        """Round the next block and advance the hidden states through it.

        Raises TensorError, naming the linear, if a weight or an input is not finite; ValueError if `layer` is not the
        next block.
        """
        if layer != self._next:
            raise ValueError(f"block {layer} was asked for, but block {self._next} is next.")
        block = self._loader.block(layer)
        require_finite(block, f"blk.{layer}.")
        self._next += 1
        return self._steps.block(layer, block, _States(self._hidden, self._truth), report)

    def head(self) -> Iterator[Rounded]:
        """Round the output matrix, one slab of rows per step. Yields nothing if the task does not name it.

        Call it after all blocks. Raises the same errors as `block`.
        """
        if HEAD not in self._steps.task.formats:
            return
        if self._next != self.layers:
            raise ValueError(f"the head was asked for, but block {self._next} is next.")
        weight = self._loader.read(f"{HEAD}.weight")
        rounder = self._steps.head_rounder(_States(self._hidden, self._truth))
        for start in range(0, weight.info.rows, SLAB_ROWS):
            yield self._steps.head_slab(rounder, weight, start)


@dataclass(frozen=True)
class _States:
    """Hidden states before a block.

    hidden: from the rounded blocks
    truth: from the original model; None if the method does not need them
    """

    hidden: WindowStates
    truth: WindowStates | None


def _share(memory: int | None, buffers: int) -> int | None:
    """Memory for each of `buffers` hidden-state buffers, in bytes."""
    room = available_memory() if memory is None else 2 * memory
    return None if room is None else room // 2 // buffers


@dataclass(frozen=True)
class _Steps:
    """What all steps share."""

    decoder: Decoder
    task: BlockwiseTask

    @property
    def _effort(self) -> Effort:
        return EFFORTS[self.task.effort]

    def block(self, layer: int, original: Block, states: _States, report: Report) -> Rounded:
        """Round one block and advance `states` through it."""
        row = self.task.method.row
        changed = folded(
            original,
            self.task.rescalings.get(layer, ()),
            self.decoder.config,
            self.task.stored,
            stored_offset=self.task.stored_offset,
        )
        start = with_tensors(original, changed)
        inputs = None if row.tuner is None else states.hidden.copy()
        block, codes, reports = self._groups(layer, start, states)
        weights = block_tensors(start)
        if inputs is not None and states.truth is not None and row.tuner is not None and codes:
            starts = {name: Start(weights[f"{name}.weight"], tensor) for name, tensor in codes.items()}
            tuner = row.tuner(self.decoder, layer, block, self._effort, self.task.seed)
            codes = dict(tuner.tune(starts, inputs, states.truth, report).tensors)
            block = with_tensors(block, {f"{name}.weight": tensor.values() for name, tensor in codes.items()})
            states.hidden.become(inputs)
            for part in parts_of(self.decoder.config, layer):
                advance_part(self.decoder, layer, part, block, states.hidden)
        prefix = f"blk.{layer}."
        return Rounded(
            tuple(_rows(prefix, weights, codes, changed)), {prefix + name: said for name, said in reports.items()}
        )

    def _groups(
        self, layer: int, start: Block, states: _States
    ) -> tuple[Block, dict[str, QuantTensor], dict[str, RoundingReport]]:
        """Round the linears of a block, group by group. Returns the rounded block, and codes and reports by name.

        Advances `states.hidden` through the rounded block, and `states.truth` through `start`.
        """
        config = self.decoder.config
        block = self._rounding_inputs(layer, start)
        codes, reports = dict[str, QuantTensor](), dict[str, RoundingReport]()
        for part in parts_of(config, layer):
            for stage in part.operation.stages(config, layer, part.before):
                wanted = {group: formats for group in stage if (formats := self._formats(layer, group))}
                if not wanted:
                    continue
                for group, seen in self._compared(layer, part, tuple(wanted), block, start, states).items():
                    tokens = seen.meter.count if group.routed else None
                    starved = tokens is not None and tokens < STARVED
                    rounder = plain_nearest if starved else self._rounder(seen)
                    for name, format in wanted[group].items():
                        linear = start.linears[name]
                        codes[name], said = _round(rounder, f"blk.{layer}.{name}", linear.prepared, format)
                        reports[name] = replace(said, seen=tokens)
                        block = with_tensors(block, {f"{name}.weight": codes[name].values()})
            advance_part(self.decoder, layer, part, block, states.hidden)
            if states.truth is not None:
                advance_part(self.decoder, layer, part, start, states.truth)
        return block, codes, reports

    def head_rounder(self, states: _States) -> LinearRounder:
        """The rounder of the output matrix, from the statistics of its input."""
        seen = _Compared(HEAD, GramMeter(), GramMeter())
        for at in states.hidden.batches():
            seen.add(self._normed(states.hidden, at), None if states.truth is None else self._normed(states.truth, at))
        return self._rounder(seen)

    def head_slab(self, rounder: LinearRounder, weight: Weight, start: int) -> Rounded:
        """Round one slab of the output matrix, from row `start` on."""
        w = weight.rows(start, min(start + SLAB_ROWS, weight.info.rows))
        codes, said = _round(rounder, HEAD, self.decoder.ops.array(w), self.task.formats[HEAD])
        return Rounded((RoundedRows(f"{HEAD}.weight", start, w, codes),), {HEAD: said})

    def _formats(self, layer: int, group: LinearGroup) -> dict[str, Format]:
        """Formats of the group's linears that are rounded, by name."""
        names = {name: f"blk.{layer}.{name}" for name in group.linears}
        return {name: self.task.formats[full] for name, full in names.items() if full in self.task.formats}

    def _compared(
        self, layer: int, part: Part, groups: tuple[LinearGroup, ...], block: Block, start: Block, states: _States
    ) -> dict[LinearGroup, _Compared]:
        """Statistics of the groups' inputs in the rounded block, and their drift from those in the original model."""
        found = {group: _Compared(f"blk.{layer}.{group.linears[0]}", GramMeter(), GramMeter()) for group in groups}
        for at in states.hidden.batches():
            at_hidden = states.hidden.place(self.decoder, layer, at)
            xs = inputs_of(self.decoder, layer, part, block, groups, self._read(states.hidden, at), at_hidden)
            ys: Mapping[LinearGroup, Tensor] = {}
            if states.truth is not None:
                at_truth = states.truth.place(self.decoder, layer, at)
                ys = inputs_of(self.decoder, layer, part, start, groups, self._read(states.truth, at), at_truth)
            for group, x in xs.items():
                seen, y = found[group], None if group.routed else ys.get(group)
                rounding = self.task.inputs.get(seen.name)
                seen.add(x if rounding is None else rounding.rounded(x), y)
        return found

    def _rounding_inputs(self, layer: int, block: Block) -> Block:
        """The block with linears that round their inputs, if the runtimes of the file do so."""
        wanted = {name: self.task.inputs.get(f"blk.{layer}.{name}") for name in block.linears}
        return block.with_linears(
            {
                name: replace(block.linears[name], input_rounding=rounding)
                for name, rounding in wanted.items()
                if rounding is not None
            }
        )

    def _rounder(self, seen: _Compared) -> LinearRounder:
        return self.task.method.row.linear(seen.stats, seen.drift, self._effort)

    def _normed(self, hidden: WindowStates, at: slice) -> Tensor:
        """Input of the head: hidden states after the final norm."""
        x = self._read(hidden, at)
        normed: Tensor = self.decoder.ops.rms_norm(x, self.decoder.weights.output_norm, self.decoder.config.norm_eps)
        return normed

    def _read(self, hidden: WindowStates, at: slice) -> Tensor:
        return hidden.read(at).to(self.decoder.weights.output_norm.device)


@dataclass(frozen=True)
class _Compared:
    """Statistics of an input, and its drift from the original model's input.

    name: name of the linear, for errors
    meter: sums the Gram matrix
    drifted: sums the drift
    """

    name: str
    meter: GramMeter
    drifted: GramMeter

    def add(self, x: Tensor, original: Tensor | None) -> None:
        """Add tokens: float32 [..., cols] each."""
        self.meter.add(x)
        if original is not None:
            self.drifted.add(x, original - x)

    @property
    def stats(self) -> Stats:
        """Raises TensorError, naming the linear, if a value is not finite."""
        try:
            return self.meter.result()
        except TensorError as error:
            raise not_finite(self.name, error) from error

    @property
    def drift(self) -> Tensor | None:
        """Sum of (x - x')^T x', [cols, cols]: x original inputs, x' inputs of the rounded block; None without x."""
        drift: Tensor | None = self.drifted.sum
        return drift


class _ReachedError(Exception):
    """Raised when all inputs that were asked for are known."""


def inputs_of(
    decoder: Decoder,
    layer: int,
    part: Part,
    block: Block,
    groups: Sequence[LinearGroup],
    x: Tensor,
    shared: Pass | None = None,
) -> dict[LinearGroup, Tensor]:
    """Inputs of groups of a part's linears: float32 [..., cols]. Computes no more than they need.

    x: hidden states [windows, n, hidden] before the part
    shared: the pass of these windows; None where the part reads nothing but x
    An expert that no token passes has no input.
    """
    found: dict[LinearGroup, Tensor] = {}

    def record(group: LinearGroup) -> Callable[[Tensor], None]:
        def keep(rows: Tensor) -> None:
            found[group] = rows
            if len(found) == len(groups):
                raise _ReachedError

        return keep

    firsts = {group.linears[0]: group for group in groups}
    watched = {name: RecordedLinear.watching(block.linears[name], record(group)) for name, group in firsts.items()}
    with suppress(_ReachedError):
        decoder.operate(layer, part, block.with_linears(watched), x, shared or decoder.place(x.shape[1]))
    return found


def input_of(decoder: Decoder, layer: int, block: Block, group: str, x: Tensor) -> Tensor:
    """Input of the group of this name: float32 [windows, n, cols]; see `inputs_of`.

    Raises ValueError for an unknown name.
    """
    for part in parts_of(decoder.config, layer):
        for each in part_groups(decoder.config, layer, part):
            if each.name == group:
                return inputs_of(decoder, layer, part, block, (each,), x)[each]
    raise ValueError(f"{group} is the input of no group of linears.")


def advance_part(decoder: Decoder, layer: int, part: Part, block: Block, hidden: WindowStates) -> None:
    """Advance hidden states through one part of a block."""
    for at in hidden.batches():
        x, shared = hidden.read(at).to(block.device), hidden.place(decoder, layer, at)
        hidden.write(at, decoder.run_part(layer, part, block, x, shared))
        hidden.beside.keep(layer, at, shared)


def _round(rounder: LinearRounder, name: str, weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
    """Round a matrix, or some of its rows. Errors name the linear."""
    try:
        return rounder(weight, format)
    except TensorError as error:
        raise TensorError(error.message, tensor=name) from error


def _rows(
    prefix: str,
    weights: Mapping[str, np.ndarray],
    codes: Mapping[str, QuantTensor],
    changed: Mapping[str, np.ndarray],
) -> Iterator[RoundedRows]:
    """The rows of a block to store: the rounded linears and the other rescaled tensors."""
    for name, tensor in codes.items():
        yield RoundedRows(f"{prefix}{name}.weight", 0, weights[f"{name}.weight"], tensor)
    for name, values in changed.items():
        if name.removesuffix(".weight") not in codes:
            yield RoundedRows(prefix + name, 0, values.reshape(-1, values.shape[-1]), None)
