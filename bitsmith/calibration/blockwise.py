"""Rounding block by block: each block sees the inputs that the rounded blocks before it produce."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.accelerator import has_room
from bitsmith.calibration.ahead import BlocksAhead
from bitsmith.calibration.beside import WindowStates
from bitsmith.calibration.block_states import BlockStates
from bitsmith.calibration.collect import (
    HEAD,
    block_loader,
    decoder_without_blocks,
    embed,
    require_finite,
)
from bitsmith.calibration.compared import Compared
from bitsmith.calibration.drift import HalfMeter, some_rows
from bitsmith.calibration.folding import block_tensors, folded, with_tensors, with_whole_stacks
from bitsmith.calibration.gradients import joined_notes
from bitsmith.calibration.inputs import advance_part, inputs_of, portions, watch
from bitsmith.calibration.last_inputs import Store, input_bytes
from bitsmith.calibration.method import FINE_BITS, Method
from bitsmith.calibration.pieces import Pieces
from bitsmith.calibration.resources import Resources
from bitsmith.calibration.rounding import (
    LinearRounder,
    RoundingReport,
    plain_nearest,
    round_named,
    rounded_group,
    with_shared_extent,
)
from bitsmith.calibration.routing import RouterCounts
from bitsmith.calibration.sources import CalibrationTokens
from bitsmith.calibration.stats import GramMeter, Stats
from bitsmith.calibration.stored_embedding import StoredEmbedding
from bitsmith.calibration.trainable import Start
from bitsmith.calibration.transforms.base import Rescaling
from bitsmith.models.arch.block import Part, parts_of, with_shared_inputs
from bitsmith.models.arch.operations.base import LinearGroup
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.quant.formats.base import Format
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.rounders.effort import EFFORTS, Effort
from bitsmith.quant.rounders.slabs import SLAB_ROWS, WIDE
from bitsmith.quant.tensor import QuantTensor
from bitsmith.recipe.coverage import STARVED
from bitsmith.recipe.rounded_rows import RoundedRows
from bitsmith.runtime.decoder import Decoder, Routing
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.torch.products import RoundedProducts, fast_products, with_rounded_products
from bitsmith.runtime.weights import Block, Linear
from bitsmith.system.memory import available_memory, trim_memory
from bitsmith.system.progress import Report, silent
from bitsmith.work.folder import WorkFolder
from bitsmith.work.state import State, Streamed

if TYPE_CHECKING:
    from bitsmith.calibration.end_to_end import EndToEnd, Trained


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
    embedding: format of the embedding in the output; None for floats
    calibrates_embedding: whether the method rounds its rows, see `StoredEmbedding`
    """

    formats: Mapping[str, Format]
    method: Method
    inputs: Mapping[str, InputRounding] = field(default_factory=dict)
    rescalings: Mapping[int, tuple[Rescaling, ...]] = field(default_factory=dict)
    stored: Mapping[str, np.dtype] = field(default_factory=dict)
    effort: str = "normal"
    seed: int = 0
    stored_offset: bool = False
    embedding: Format | None = None
    calibrates_embedding: bool = False


@dataclass(frozen=True)
class Rounded:
    """The result of one step.

    rows: rows to store, under GGUF names: the rounded linears and the other rescaled tensors
    reports: the report of each linear, by name without ".weight"
    routed: number of tokens that each expert got, int64 [experts], by layer
    """

    rows: tuple[RoundedRows, ...]
    reports: Mapping[str, RoundingReport]
    routed: Mapping[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Lesson:
    """What a rounded model is trained with: windows of tokens, int64 [windows, context], and who predicts them."""

    tokens: np.ndarray
    teacher: Checkpoint


class BlockwiseRounding:
    """Rounds a model step by step: `block(0)`, `block(1)`, ..., then the slabs of the head.

    Each block sees the inputs that the rounded blocks before it produce. Linears of a group share their statistics.
    The groups of a block are rounded in the order in which they are computed. Memory holds the weights of one block
    in float32, one Hessian and its factor. The same tokens give the same codes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: CalibrationTokens,
        task: BlockwiseTask,
        resources: Resources,
        head: Stats | None = None,
    ) -> None:
        """Embed the tokens. head: statistics of the head's input, if the embedding is the head; see `tied_head`"""
        if resources.threads is not None:
            torch.set_num_threads(resources.threads)
        device = resources.device
        self.layers = checkpoint.config.layers
        self._loader = block_loader(checkpoint, device)
        self._ahead = BlocksAhead(self._loader, ahead=device != "cpu", room=partial(has_room, torch.device(device)))
        self._steps = BlockSteps(decoder_without_blocks(self._loader), task, tokens.all_experts, resources.steps)
        self._next = 0
        self._resources = resources
        buffers = task.method.hidden_state_buffers(task.effort)
        share = _share(resources.memory, buffers)
        own, self.embedding = self._steps.decoder, StoredEmbedding.of_task(self._loader, task, head)
        stored = own if self.embedding is None else self.embedding.followed(own, tokens.tokens)
        embedded = partial(embed, tokens=tokens.tokens, memory=share, pieces=resources.pieces)
        self._hidden: WindowStates | None = embedded(stored)
        self._truth: WindowStates | None = embedded(own) if buffers > 1 else None
        size = input_bytes(tokens.tokens.size, checkpoint.config.hidden)
        room = None if share is None else max(0, share - size)
        self._stores = Store(room), Store(room)

    def block(self, layer: int, report: Report = silent) -> Rounded:
        """Round the next block and advance the hidden states through it.

        Raises TensorError, naming the linear, if a weight or an input is not finite; ValueError if `layer` is not the
        next block.
        """
        if layer != self._next:
            raise ValueError(f"block {layer} was asked for, but block {self._next} is next.")
        block = self._ahead.take(layer)
        require_finite(block, f"blk.{layer}.")
        block = with_rounded_products(block, self._steps.coarse(layer))
        self._next += 1
        with fast_products(self._loader.device):
            return self._steps.block(layer, block, self._states, report)

    @property
    def _states(self) -> BlockStates:
        assert self._hidden is not None
        return BlockStates(self._hidden, self._truth, self._stores)

    def kept(self) -> dict[str, Streamed]:
        """Hidden states before the next block, for a state file."""
        states = self._states
        return {**states.hidden.kept("hidden"), **({} if states.truth is None else states.truth.kept("truth"))}

    def resume(self, layer: int, state: State) -> None:
        """Go on before a block, with what `kept` gave there. Raises DamagedError if it is of another model."""
        states = self._states
        states.hidden.restore(state, "hidden")
        if states.truth is not None:
            states.truth.restore(state, "truth")
        self._next = layer

    @property
    def formats(self) -> Mapping[str, Format]:
        """The format of each linear that is rounded, by GGUF name without ".weight"."""
        return self._steps.task.formats

    @property
    def head_slabs(self) -> list[tuple[int, int]]:
        """First row, and the one behind the last, of each step of `head`."""
        rows = self._loader.read(f"{HEAD}.weight").info.rows if HEAD in self._steps.task.formats else 0
        return [(start, min(start + SLAB_ROWS, rows)) for start in range(0, rows, SLAB_ROWS)]

    def head(self, first: int = 0) -> Iterator[Rounded]:
        """Round the output matrix, one slab of rows per step. Yields nothing if the task does not name it.

        first: number of the first step
        Call it after all blocks. Raises the same errors as `block`.
        """
        if HEAD not in self._steps.task.formats:
            return
        if self._next != self.layers:
            raise ValueError(f"the head was asked for, but block {self._next} is next.")
        weight = self._loader.read(f"{HEAD}.weight")
        if first == len(self.head_slabs):
            return
        with fast_products(self._loader.device):
            rounder = self._steps.head_rounder(self._states, weight)
        for start, _ in self.head_slabs[first:]:
            yield self._steps.head_slab(rounder, weight, start)

    def train(
        self,
        rows: Sequence[RoundedRows],
        how: EndToEnd,
        lesson: Lesson,
        report: Report,
        work: WorkFolder | None = None,
    ) -> Trained:
        """Train the whole model end to end, after all blocks and the head were rounded.

        rows: what all steps gave
        work: where the state is kept; None: nowhere
        Memory holds the codes of all matrices, their weights in float32, and one block decoded. Raises TensorError if
        the start's loss is not finite.
        """
        from bitsmith.calibration.end_to_end import Student, train
        from bitsmith.calibration.teaching import predictions, with_ends

        task = self._steps.task
        self._hidden = self._truth = None  # their memory is free for the training
        coarse = all(format.bits < FINE_BITS for format in task.formats.values())
        room = None if self._resources.memory is None else self._resources.memory // 3
        with fast_products(self._loader.device):
            teacher = predictions(lesson.teacher, lesson.tokens, self._resources, report, coarse=coarse, work=work)
            decoder = with_ends(self._loader, self._steps.decoder, self.embedding)
            student = Student(self._loader, decoder, rows, how, room)
            student.train_norms(task.stored, as_folder=task.stored_offset)
            return train(student, teacher, lesson.tokens, task.seed, report, work=work, pieces=self._resources.steps)


def _share(memory: int | None, buffers: int) -> int | None:
    """Memory for each of `buffers` hidden-state buffers, in bytes."""
    room = available_memory() if memory is None else 2 * memory
    return None if room is None else room // 2 // buffers


@dataclass(frozen=True)
class BlockSteps:
    """What all steps share.

    every: whether every token counts for every expert; learning: how the steps of learned rounding are computed
    """

    decoder: Decoder
    task: BlockwiseTask
    every: bool = False
    learning: Pieces = field(default_factory=Pieces)

    @property
    def _effort(self) -> Effort:
        return EFFORTS[self.task.effort]

    def coarse(self, layer: int) -> frozenset[str]:
        """Names of the linears of a block whose formats lose more than bfloat16 does."""
        prefix = f"blk.{layer}."
        formats = {name: format for name, format in self.task.formats.items() if name.startswith(prefix)}
        return frozenset(name.removeprefix(prefix) for name, format in formats.items() if format.bits < FINE_BITS)

    def block(self, layer: int, original: Block, states: BlockStates, report: Report) -> Rounded:
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
        routers = RouterCounts(self.decoder.config)
        codes, reports = self._groups(layer, start, states, routers.routing)
        weights = block_tensors(start)
        if inputs is not None and states.truth is not None and row.tuner is not None and codes:
            moving = {name: tensor for name, tensor in codes.items() if not reports[name].recovered}
            starts = {name: Start(weights[f"{name}.weight"], tensor) for name, tensor in moving.items()}
            values = {f"{name}.weight": tensor.values() for name, tensor in codes.items()}
            block = with_tensors(self.rounding_inputs(layer, start), values)
            tuner = row.tuner(self.decoder, layer, block, self._effort, self.task.seed, self.learning)
            tuned: Mapping[str, QuantTensor] = {}
            if starts:
                found = tuner.tune(starts, inputs, states.truth, report)
                tuned = found.tensors
                joined_notes(found.notes, states.hidden.pieces.notes)
            codes |= tuned
            block = with_tensors(block, {f"{name}.weight": tensor.values() for name, tensor in tuned.items()})
            states.hidden.become(inputs)
            for part in parts_of(self.decoder.config, layer):
                advance_part(self.decoder, layer, part, block, states.hidden)
        prefix = f"blk.{layer}."
        return Rounded(
            tuple(_rows(prefix, weights, codes, with_whole_stacks(changed, weights))),
            {prefix + name: said for name, said in reports.items()},
            routers.counts,
        )

    def _groups(
        self, layer: int, start: Block, states: BlockStates, routing: Routing
    ) -> tuple[dict[str, QuantTensor], dict[str, RoundingReport]]:
        """Round the linears of a block, group by group. Returns codes and reports by name.

        Advances `states.hidden` through the rounded block, and `states.truth` through `start`. What the codes stand
        for is in memory only while the rounded block computes.
        routing: told of the experts that the rounded block's routers choose
        """
        config = self.decoder.config
        codes, reports = dict[str, QuantTensor](), dict[str, RoundingReport]()
        for part in parts_of(config, layer):
            states, own = states.before(part, start), dict[str, QuantTensor]()
            for stage in part.operation.stages(config, layer, part.before):
                groups = with_shared_inputs(stage) if self.every else stage
                wanted = {group: formats for group in groups if (formats := self.formats_of(layer, group))}
                before = dict(own)
                for portion in portions(tuple(wanted), start):
                    each = {group: wanted[group] for group in portion}
                    seen = self._seen(layer, part, each, (start, before), states)
                    found, said = self._portion(layer, each, start, seen)
                    own |= found
                    reports |= said
            block = self.with_codes(layer, start, own)
            states.last.advance(self.decoder, layer, part, block, states.hidden, routing)
            if states.truth is not None:
                states.last_truth.advance(self.decoder, layer, part, start, states.truth)
            del block  # its memory is free in the next part
            codes |= own
        return codes, reports

    def _seen(
        self,
        layer: int,
        part: Part,
        groups: Collection[LinearGroup],
        block: tuple[Block, Mapping[str, QuantTensor]],
        states: BlockStates,
    ) -> dict[LinearGroup, Compared]:
        """`compared`, whatever the memory. block: as the model has it, and the codes of the part so far"""
        start, codes = block
        if _wide(groups, start):
            trim_memory()
        rounded = self.with_codes(layer, start, codes)
        return states.repeated(partial(self.compared, layer, part, tuple(groups), rounded, start, states))

    def with_codes(self, layer: int, start: Block, codes: Mapping[str, QuantTensor]) -> Block:
        """A block whose products are those of codes, and of rounded inputs if the runtimes of the file round them."""
        block = self.rounding_inputs(layer, start)
        found: dict[str, Linear] = {}
        for name, tensor in codes.items():
            linear, values = block.linears[name], torch.as_tensor(tensor.values(), device=block.device)
            kernel = linear.kernel
            prepared = kernel.rounded(values) if isinstance(kernel, RoundedProducts) else values
            found[name] = replace(linear, prepared=prepared)
        return block.with_linears(found)

    def _portion(
        self,
        layer: int,
        wanted: Mapping[LinearGroup, Mapping[str, Format]],
        start: Block,
        compared: Mapping[LinearGroup, Compared],
    ) -> tuple[dict[str, QuantTensor], dict[str, RoundingReport]]:
        """Round some groups of a stage. Returns codes and reports by name."""
        codes, reports = dict[str, QuantTensor](), dict[str, RoundingReport]()
        for group, seen in compared.items():
            starved = group.routed and seen.meter.count < STARVED
            rounder = plain_nearest if starved else self._rounder(seen)
            shared = with_shared_extent(
                {name: (start.linears[name].prepared, format) for name, format in wanted[group].items()}
            )
            matrices = {name: (start.linears[name].prepared, format) for name, format in shared.items()}
            for name, (tensor, said) in rounded_group(rounder, f"blk.{layer}.", matrices).items():
                codes[name], reports[name] = tensor, said
        return codes, reports

    def head_rounder(self, states: BlockStates, weight: Weight) -> LinearRounder:
        """The rounder of the output matrix, from the statistics of its input."""
        return self._rounder(self.head_compared(states, weight))

    def head_compared(self, states: BlockStates, weight: Weight) -> Compared:
        """Statistics of the input of the output matrix."""
        half = HalfMeter.of([self.decoder.ops.array(some_rows(weight))])
        seen = Compared(HEAD, GramMeter(rounded=self.task.formats[HEAD].bits < FINE_BITS), half)
        for at in states.hidden.batches():
            seen.add(self._normed(states.hidden, at), None if states.truth is None else self._normed(states.truth, at))
            seen.end()
        return seen

    def head_slab(self, rounder: LinearRounder, weight: Weight, start: int) -> Rounded:
        """Round one slab of the output matrix, from row `start` on."""
        w = weight.rows(start, min(start + SLAB_ROWS, weight.info.rows))
        codes, said = round_named(rounder, HEAD, self.decoder.ops.array(w), self.task.formats[HEAD])
        return Rounded((RoundedRows(f"{HEAD}.weight", start, w, codes),), {HEAD: said})

    def formats_of(self, layer: int, group: LinearGroup) -> dict[str, Format]:
        """Formats of the group's linears that are rounded, by name."""
        names = {name: f"blk.{layer}.{name}" for name in group.linears}
        return {name: self.task.formats[full] for name, full in names.items() if full in self.task.formats}

    def compared(
        self, layer: int, part: Part, groups: tuple[LinearGroup, ...], block: Block, start: Block, states: BlockStates
    ) -> dict[LinearGroup, Compared]:
        """Statistics of the groups' inputs in the rounded block, and their drift from those in the original model."""
        coarse = self.coarse(layer)
        found = {group: Compared.of(layer, group, start, rounded=coarse.issuperset(group.linears)) for group in groups}
        alike = tuple(group for group in groups if not group.routed)  # both models choose the same tokens for them
        routing, ending = Routing(self.every), states.last.among(groups)
        for at in states.pieces(found.values(), small=_wide(groups, start)):
            ys: Mapping[LinearGroup, Tensor] = {}
            if states.truth is not None and alike:
                shared = states.truth.place(self.decoder, layer, at).watched(routing)
                ys = inputs_of(self.decoder, layer, part, start, alike, self._read(states.truth, at), shared)
                if ending in ys:
                    states.last_truth.keep(states.truth, at, ys[ending])
                    states.truth.beside.keep(layer, at, shared)
            watchers = {group: self._adding(found[group], ys.get(group)) for group in groups}
            if ending is not None:
                watchers[ending] = self._keeping(watchers[ending], states, at)
            shared = states.hidden.place(self.decoder, layer, at).watched(routing)
            watch(self.decoder, layer, part, block, watchers, self._read(states.hidden, at), shared)
            if ending is not None:
                states.hidden.beside.keep(layer, at, shared)
        return found

    def _keeping(self, add: Callable[[Tensor], None], states: BlockStates, at: slice) -> Callable[[Tensor], None]:
        """Adds inputs to statistics, and keeps them."""

        def keep(x: Tensor) -> None:
            states.last.keep(states.hidden, at, x)
            add(x)

        return keep

    def _adding(self, seen: Compared, original: Tensor | None) -> Callable[[Tensor], None]:
        """Adds inputs to statistics, rounded as the runtimes of the file round them."""
        rounding = self.task.inputs.get(seen.name)

        def add(x: Tensor) -> None:
            seen.add(x if rounding is None else rounding.rounded(x), original)

        return add

    def rounding_inputs(self, layer: int, block: Block) -> Block:
        """The block with linears that round their inputs, if the runtimes of the file do so."""
        wanted = {name: self.task.inputs.get(f"blk.{layer}.{name}") for name in block.linears}
        return block.with_linears(
            {
                name: replace(block.linears[name], input_rounding=rounding)
                for name, rounding in wanted.items()
                if rounding is not None
            }
        )

    def _rounder(self, seen: Compared) -> LinearRounder:
        return self.task.method.row.linear(*seen.taken(), self._effort)

    def _normed(self, hidden: WindowStates, at: slice) -> Tensor:
        """Input of the head: hidden states after the final norm."""
        x = self._read(hidden, at)
        normed: Tensor = self.decoder.ops.rms_norm(x, self.decoder.weights.output_norm, self.decoder.config.norm_eps)
        return normed

    def _read(self, hidden: WindowStates, at: slice) -> Tensor:
        return hidden.read(at).to(self.decoder.weights.output_norm.device)


def _wide(groups: Collection[LinearGroup], block: Block) -> bool:
    """Whether an input of some groups has so many columns that memory counts most."""
    return any(int(block.linears[group.linears[0]].prepared.shape[1]) >= WIDE for group in groups)


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
