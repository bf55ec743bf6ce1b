"""Rounding block by block: each block's linears see the inputs that the quantized blocks before them give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.collect import HEAD, decoder_without_blocks, embed, not_finite, require_finite
from bitsmith.calibration.folding import block_tensors, folded, with_tensors
from bitsmith.calibration.hidden import HiddenStates
from bitsmith.calibration.learned import BlockTuner
from bitsmith.calibration.rounding import LinearRounder, RoundingReport, clipped_nearest, gptq_rounder
from bitsmith.calibration.sources import CalibrationTokens
from bitsmith.calibration.stats import GramMeter, Stats
from bitsmith.calibration.trainable import Start
from bitsmith.calibration.transforms.base import Rescaling
from bitsmith.errors import TensorError
from bitsmith.models.arch.groups import LinearGroup, linear_groups
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.quant.formats.base import Format
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.rounders.effort import EFFORTS, Effort
from bitsmith.quant.rounders.gptq import SLAB_ROWS
from bitsmith.quant.tensor import QuantTensor
from bitsmith.recipe.method import Method
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import LINEARS, Block, Linear, WeightLoader, weight_reader
from bitsmith.system.memory import available_memory
from bitsmith.system.progress import Progress, Report, silent


@dataclass(frozen=True)
class BlockwiseTask:
    """What is to be made of a model's blocks.

    formats: by GGUF name without ".weight" ("blk.0.attn_q", "output"); linears that are not named keep their weights
    inputs: how what linears are given is rounded, by the same names
    rescalings: by layer, found on the original model
    stored: types of norms, see `folded`
    effort: see `EFFORTS`; seed: of the order of its windows
    """

    formats: Mapping[str, Format]
    method: Method
    inputs: Mapping[str, InputRounding] = field(default_factory=dict)
    rescalings: Mapping[int, tuple[Rescaling, ...]] = field(default_factory=dict)
    stored: Mapping[str, np.dtype] = field(default_factory=dict)
    effort: str = "normal"
    seed: int = 0


@dataclass(frozen=True)
class BlockTensor:
    """Rows of a tensor of a block, or of the head, as they are to be stored.

    name: GGUF's ("blk.0.attn_q.weight"); rows are in the source's order
    start: of the rows; a tensor that comes in pieces comes in order
    weight: float32 [rows, cols] (a vector is one row), what is to be stored, rescaled where it was
    tensor: its codes, numpy arrays; None where it is stored as floats
    """

    name: str
    start: int
    weight: np.ndarray
    tensor: QuantTensor | None


def round_blocks(
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    task: BlockwiseTask,
    reports: dict[str, RoundingReport],
    *,
    memory: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    report: Report = silent,
) -> Iterator[BlockTensor]:
    """All blocks, then the head where `task.formats` names it. Linears of a group share their statistics; groups are
    taken in the order they are computed, each after the ones before it were rounded.

    reports: filled with what rounding cost, by linear, as it goes
    memory: bytes for all hidden states together, see `HiddenStates` and `Method.hidden_state_buffers`
    threads: torch.set_num_threads for the whole process; None leaves it alone
    One block's weights are held at a time, in float32, with one Hessian and its factor. Same tokens, same codes.
    Raises TensorError where an input is not finite, naming the linear.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    loader = WeightLoader(
        checkpoint.config, weight_reader(checkpoint), DenseKernel(device=device), TorchOps(device), device
    )
    walk = _Walk(decoder_without_blocks(loader), task, reports, report)
    share = _share(memory, task.method.hidden_state_buffers(task.effort))
    hidden = embed(walk.decoder, tokens.tokens, memory=share)
    truth = (
        embed(walk.decoder, tokens.tokens, memory=share) if task.method.hidden_state_buffers(task.effort) > 1 else None
    )
    layers = checkpoint.config.layers
    for layer in range(layers):
        report(Progress(task.method.rounder, layer, layers, "blocks", f"blk.{layer}"))
        block = loader.block(f"blk.{layer}.")
        require_finite(block, f"blk.{layer}.")
        yield from walk.block(layer, block, hidden, truth)
    if HEAD in task.formats:
        yield from walk.head(loader.read(f"{HEAD}.weight"), hidden, truth)
    report(Progress(task.method.rounder, layers, layers, "blocks"))


def _share(memory: int | None, hidden_state_buffers: int) -> int | None:
    """Bytes for each of several hidden states."""
    room = available_memory() if memory is None else 2 * memory
    return None if room is None else room // 2 // hidden_state_buffers


@dataclass(frozen=True)
class _Walk:
    """What stays the same from block to block."""

    decoder: Decoder
    task: BlockwiseTask
    reports: dict[str, RoundingReport]
    report: Report

    @property
    def _effort(self) -> Effort:
        return EFFORTS[self.task.effort]

    def block(
        self, layer: int, original: Block, hidden: HiddenStates, truth: HiddenStates | None
    ) -> Iterator[BlockTensor]:
        """Round one block and move `hidden` behind what became of it, `truth` behind the original.

        truth: hidden states of the original model, for rounders that make up for what the prefix lost
        """
        changed = folded(original, self.task.rescalings.get(layer, ()), self.decoder.config, self.task.stored)
        start = with_tensors(original, changed)
        inputs = hidden.copy() if self.task.method.rounder == "learned" else None
        block, rounded = self._rounding_inputs(layer, start), dict[str, QuantTensor]()
        for group in linear_groups(self.decoder.config):
            formats = self._formats(layer, group)
            if formats:
                rounder = self._rounder(self._compared(layer, group, block, hidden, start, truth))
                for name, format in formats.items():
                    linear: Linear = vars(start)[LINEARS[name]]
                    rounded[name] = self._round(rounder, f"blk.{layer}.{name}", linear.prepared, format)
                    block = with_tensors(block, {f"{name}.weight": rounded[name].values()})
            if group.name in HALVES:
                advance_half(self.decoder, layer, block, group.name, hidden)
                if truth is not None:
                    advance_half(self.decoder, layer, start, group.name, truth)
        weights = block_tensors(start)
        if inputs is not None and truth is not None and rounded:
            starts = {name: Start(weights[f"{name}.weight"], tensor) for name, tensor in rounded.items()}
            rounded = self._learned(layer, block, starts, inputs, truth)
            block = with_tensors(block, {f"{name}.weight": tensor.values() for name, tensor in rounded.items()})
            hidden.become(inputs)
            for name in HALVES:
                advance_half(self.decoder, layer, block, name, hidden)
        yield from _emitted(f"blk.{layer}.", weights, rounded, changed)

    def head(self, weight: Weight, hidden: HiddenStates, truth: HiddenStates | None) -> Iterator[BlockTensor]:
        """The output matrix, slab by slab of its rows."""
        seen = _Compared(HEAD, GramMeter(), GramMeter())
        for at in hidden.batches():
            seen.add(self._normed(hidden, at), None if truth is None else self._normed(truth, at))
        rounder, format, rows = self._rounder(seen), self.task.formats[HEAD], weight.info.rows
        for start in range(0, rows, SLAB_ROWS):
            w = weight.rows(start, min(start + SLAB_ROWS, rows))
            yield BlockTensor(f"{HEAD}.weight", start, w, self._round(rounder, HEAD, self.decoder.ops.array(w), format))

    def _round(self, rounder: LinearRounder, name: str, weight: Tensor, format: Format) -> QuantTensor:
        """A matrix, or the next rows of one; its report joins those of the rows before."""
        try:
            tensor, said = rounder(weight, format)
        except TensorError as error:
            raise TensorError(f"{name}: {error}") from error
        before = [self.reports[name]] if name in self.reports else []
        self.reports[name] = RoundingReport.joined([*before, said])
        return tensor

    def _formats(self, layer: int, group: LinearGroup) -> dict[str, Format]:
        """Of the linears of a group that are to be rounded."""
        names = {name: f"blk.{layer}.{name}" for name in group.linears}
        return {name: self.task.formats[full] for name, full in names.items() if full in self.task.formats}

    def _compared(
        self,
        layer: int,
        group: LinearGroup,
        block: Block,
        hidden: HiddenStates,
        start: Block,
        truth: HiddenStates | None,
    ) -> _Compared:
        """A group's input as the block now gives it, beside what `start` gives on `truth`."""
        seen = _Compared(f"blk.{layer}.{group.linears[0]}", GramMeter(), GramMeter())
        inputs = self.task.inputs.get(seen.name)
        for at in hidden.batches():
            x = input_of(self.decoder, layer, block, group.name, self._read(hidden, at))
            x = x if inputs is None else inputs.rounded(x)
            y = None if truth is None else input_of(self.decoder, layer, start, group.name, self._read(truth, at))
            seen.add(x, y)
        return seen

    def _rounding_inputs(self, layer: int, block: Block) -> Block:
        """The block with linears that round what they are given, where the file's readers will."""
        changed: dict[str, Any] = {
            field: replace(vars(block)[field], input_rounding=self.task.inputs[f"blk.{layer}.{name}"])
            for name, field in LINEARS.items()
            if f"blk.{layer}.{name}" in self.task.inputs
        }
        return replace(block, **changed)

    def _rounder(self, seen: _Compared) -> LinearRounder:
        if self.task.method.rounder == "nearest":
            return clipped_nearest(seen.stats)
        return gptq_rounder(seen.stats, seen.drift if self._effort.corrects else None, self._effort)

    def _learned(
        self, layer: int, block: Block, starts: Mapping[str, Start], inputs: HiddenStates, targets: HiddenStates
    ) -> dict[str, QuantTensor]:
        """GPTQ's codes and scales tuned together, until the block gives nearly what the original's gives."""
        tuner = BlockTuner(self.decoder, layer, block, self._effort, self.task.seed)
        return dict(tuner.tune(starts, inputs, targets, self.report).tensors)

    def _normed(self, hidden: HiddenStates, at: slice) -> Tensor:
        """What the head is given."""
        x = self._read(hidden, at)
        normed: Tensor = self.decoder.ops.rms_norm(x, self.decoder.weights.output_norm, self.decoder.config.norm_eps)
        return normed

    def _read(self, hidden: HiddenStates, at: slice) -> Tensor:
        return hidden.read(at).to(self.decoder.weights.output_norm.device)


@dataclass(frozen=True)
class _Compared:
    """An input, counted, and how it drifted from the original's.

    name: of its linear, for errors
    """

    name: str
    meter: GramMeter
    drifted: GramMeter

    def add(self, x: Tensor, original: Tensor | None) -> None:
        """float32 [..., cols] each."""
        self.meter.add(x)
        if original is not None:
            self.drifted.add(x, original - x)

    @property
    def stats(self) -> Stats:
        """Raises TensorError, naming the linear, where a value is not finite."""
        try:
            return self.meter.result()
        except TensorError as error:
            raise not_finite(self.name, error) from error

    @property
    def drift(self) -> Tensor | None:
        """Sum of (x - x')^T x', [cols, cols]; None where there is no original."""
        drift: Tensor | None = self.drifted.sum
        return drift


HALVES: Mapping[str, str] = {
    "o_proj_input": "output",
    "down_proj_input": "down",
}  # a half's last group -> the linear it feeds


def input_of(decoder: Decoder, layer: int, block: Block, group: str, x: Tensor) -> Tensor:
    """What a group's linears are given: float32 [windows, n, cols].

    x: hidden states [windows, n, hidden] before the half of the block that the group belongs to
    """
    found: Tensor = decoder.ffn_in(block, x) if group.startswith("ffn") else decoder.attn_in(block, x)
    if group == "down_proj_input":
        found = decoder.down_proj_input(block, found)
    if group == "o_proj_input":
        found = decoder.o_proj_input(layer, block, found, decoder.place(x.shape[1]))
    return found


def advance_half(decoder: Decoder, layer: int, block: Block, group: str, hidden: HiddenStates) -> None:
    """Replace hidden states by those behind the half of a block that ends with `group`."""
    last: Linear = vars(block)[HALVES[group]]
    device = block.attn_norm.device
    for at in hidden.batches():
        x = hidden.read(at).to(device)
        hidden.write(at, x + last(input_of(decoder, layer, block, group, x)))


def _emitted(
    prefix: str,
    weights: Mapping[str, np.ndarray],
    rounded: Mapping[str, QuantTensor],
    changed: Mapping[str, np.ndarray],
) -> Iterator[BlockTensor]:
    """What is to be stored of a block: the rounded linears, and what else was rescaled."""
    for name, tensor in rounded.items():
        yield BlockTensor(f"{prefix}{name}.weight", 0, weights[f"{name}.weight"], tensor)
    for name, values in changed.items():
        if name.removesuffix(".weight") not in rounded:
            yield BlockTensor(prefix + name, 0, values.reshape(-1, values.shape[-1]), None)
