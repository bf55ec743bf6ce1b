"""The statistics pass: runs the original model, block by block, over all calibration windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.beside import WindowStates
from bitsmith.calibration.folding import block_tensors
from bitsmith.calibration.kept_pass import KeptPass, PassSoFar, started
from bitsmith.calibration.method import FINE_BITS
from bitsmith.calibration.passing import Staged, pass_through
from bitsmith.calibration.pieces import Pieces
from bitsmith.calibration.routing import RouterCounts
from bitsmith.calibration.sources import CalibrationTokens
from bitsmith.calibration.stats import Stats, StatsMeter
from bitsmith.calibration.transforms.base import Rescaling, Transform, rescale_block
from bitsmith.errors import TensorError
from bitsmith.models.arch.block import linear_groups, linear_shapes, with_shared_inputs
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.quant.formats.base import Format
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.recipe.coverage import Coverage
from bitsmith.runtime.decoder import Decoder, Routing
from bitsmith.runtime.torch.core_ops import pass_ops
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ondemand import OnDemandKernel
from bitsmith.runtime.torch.products import fast_products, with_rounded_products
from bitsmith.runtime.weights import Block, Linear, WeightLoader, Weights, weight_reader
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.work.folder import WorkFolder

SAMPLE = 512  # input rows in the sample of a search that needs one
HEAD = "output"  # name of the head's input, also if the head is the token embedding


@dataclass(frozen=True)
class Wanted:
    """What to collect for each input in addition to sums.

    gram: the Gram matrix, [cols, cols] float32 for every group of every block; for small models
    sample: number of rows to keep; the same tokens for every input
    """

    gram: bool = False
    sample: int = 0


@dataclass(frozen=True)
class Search:
    """A search for rescalings during the pass, for one output.

    make: makes the transform of a block, given how the inputs of its linears are rounded
    formats: the formats of the linears, by GGUF name without ".weight"
    inputs: how the inputs of linears are rounded, by the same names
    """

    make: Callable[[Mapping[str, InputRounding]], Transform]
    formats: Mapping[str, Format]
    inputs: Mapping[str, InputRounding] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """Statistics of every linear's input.

    stats: by GGUF name without ".weight" ("blk.0.attn_q", and "output" for the head); linears that share an input
        share the object
    record: tokens, their hash, context and seed
    tied: whether the head is the token embedding
    rescalings: for each search, its rescalings by layer
    coverage: tokens that each expert saw; None for a model without experts
    """

    stats: Mapping[str, Stats]
    record: CalibrationRecord
    tied: bool = False
    rescalings: tuple[Mapping[int, tuple[Rescaling, ...]], ...] = ()
    coverage: Coverage | None = None


@dataclass(frozen=True)
class RecordedLinear(Linear):
    """A linear that passes its input to `record`, before the input is rounded."""

    record: Callable[[Tensor], None] = field(default=lambda x: None)

    @classmethod
    def watching(cls, linear: Linear, record: Callable[[Tensor], None]) -> RecordedLinear:
        """The same linear, which records."""
        return cls(**vars(linear), record=record)

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [..., cols] -> float32 [..., rows]."""
        self.record(x)
        y: Tensor = super().__call__(x)
        return y


def collect(
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    *,
    wanted: Wanted | None = None,
    searches: Sequence[Search] = (),
    rounded: bool = False,
    memory: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    work: tuple[WorkFolder, str] | None = None,
    pieces: Pieces | None = None,
    report: Report = silent,
) -> Calibration:
    """Run the model over the tokens and collect statistics of every linear's input.

    Memory holds one block's weights, as dense float32, and the hidden states of all windows. If these need more than
    `memory` bytes, they go to disk (see `HiddenStates`). Statistics that only searches need are dropped after each
    block. The same tokens give the same result.
    rounded: without searches, whether products may round their inputs to bfloat16; with them, formats tell
    threads: number of torch threads, set for the whole process; None: torch's present setting
    work: where the state is kept, and under which name; what an earlier start has kept there is continued
    pieces: how batches of windows are computed; None: whole, and in pieces where memory does not suffice
    Raises TensorError, naming the linear, if an input holds NaN or infinite values; UnsupportedError for an unknown
    architecture.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    config = checkpoint.config
    wanted = wanted or Wanted()
    passing = _with_needs(wanted, searches)
    seed, routers = tokens.seed, RouterCounts(config, every=tokens.all_experts)
    lossy = coarse(searches)
    loader = block_loader(checkpoint, device)
    decoder = decoder_without_blocks(loader)
    state = KeptPass(None, "", config) if work is None else KeptPass(*work, config)
    so_far = state.read() or started(searches)
    routers.restore(so_far.routed)
    stats, rescalings = so_far.stats, so_far.rescalings
    with torch.inference_mode(), fast_products(device):
        hidden = embed(decoder, tokens.tokens, memory=memory, pieces=pieces)
        state.restore(hidden)
        for layer in range(so_far.layer, config.layers):
            report(Progress("calibrate", layer, config.layers, "blocks", f"blk.{layer}"))
            meters = meters_of(config, layer, passing, seed, every=tokens.all_experts, rounded=lossy)
            block = loader.block(layer)
            require_finite(block, f"blk.{layer}.")
            names = frozenset(block.linears) if rounded and not searches else lossy
            _advance_recording(decoder, layer, with_rounded_products(block, names), hidden, meters, routers)
            found = _results(meters)
            for search, kept in zip(searches, rescalings, strict=True):
                kept[layer] = _rescalings(config, layer, block, search, found)
            del block, meters
            stats |= {f"blk.{layer}.{name}": each for name, each in _only(wanted, found).items()}
            state.keep(PassSoFar(layer + 1, stats, rescalings, routers.counts), hidden)
        if HEAD not in stats:
            stats[HEAD] = _head_stats(decoder, hidden, wanted, seed)
            state.keep(PassSoFar(config.layers + 1, stats, rescalings, routers.counts), None)
    report(Progress("calibrate", config.layers, config.layers, "blocks"))
    return Calibration(stats, tokens.record, config.tied, rescalings, routers.coverage(tokens.tokens.size))


def _advance_recording(
    decoder: Decoder,
    layer: int,
    block: Block,
    hidden: WindowStates,
    meters: Mapping[str, StatsMeter],
    routers: RouterCounts,
) -> None:
    """Move hidden states through a block whose linears record their inputs in meters."""
    staged = None if routers.every else Staged()
    advance(decoder, layer, recording(block, f"blk.{layer}.", meters, staged), hidden, routers.routing, staged)


def coarse(searches: Sequence[Search]) -> frozenset[str]:
    """Names of linears within a block whose formats lose more than bfloat16 does, in every search."""
    found: dict[str, int] = {}
    for search in searches:
        for name, format in search.formats.items():
            own = name.split(".", 2)[-1]
            found[own] = max(found.get(own, 0), format.bits)
    return frozenset(name for name, bits in found.items() if bits < FINE_BITS)


def _with_needs(wanted: Wanted, searches: Sequence[Search]) -> Wanted:
    """`wanted`, plus what the searches read."""
    needs = frozenset[str]().union(*(search.make({}).needs for search in searches))
    return Wanted(wanted.gram or "gram" in needs, max(wanted.sample, SAMPLE if "sample" in needs else 0))


def _only(wanted: Wanted, stats: Mapping[str, Stats]) -> dict[str, Stats]:
    """Statistics without unwanted Gram matrices and samples. Linears that share statistics still share them."""
    kept: dict[int, Stats] = {}
    for each in stats.values():
        gram = each.gram if wanted.gram else None
        kept[id(each)] = replace(each, gram=gram, sample=each.sample if wanted.sample else each.sample[:0].copy())
    return {name: kept[id(each)] for name, each in stats.items()}


def _rescalings(
    config: ModelConfig, layer: int, block: Block, search: Search, stats: Mapping[str, Stats]
) -> tuple[Rescaling, ...]:
    """The rescalings that a search finds for one block."""
    groups = linear_groups(config, layer)
    names = [name for group in groups for name in group.linears]
    formats = {name: search.formats[f"blk.{layer}.{name}"] for name in names if f"blk.{layer}.{name}" in search.formats}
    inputs = {name: search.inputs[f"blk.{layer}.{name}"] for name in names if f"blk.{layer}.{name}" in search.inputs}
    by_group = {group.name: stats[group.linears[0]] for group in groups}
    return rescale_block(search.make(inputs), config, groups, block_tensors(block), formats, by_group)[1]


def require_finite(block: Block, prefix: str) -> None:
    """Raise TensorError, naming the matrix, if a matrix of the block holds NaN or infinite values."""
    for name, linear in block.linears.items():
        if not bool(torch.isfinite(linear.prepared).all()):
            raise TensorError(
                "the weights hold NaN or infinite values; the checkpoint is damaged: download it again. "
                "`bitsmith inspect --verify` finds the place.",
                tensor=f"{prefix}{name}",
            )


def block_loader(checkpoint: Checkpoint, device: str) -> WeightLoader:
    """Reads the blocks of a model one by one, in float32, for passes over a text."""
    config = checkpoint.config
    return WeightLoader(config, weight_reader(checkpoint), DenseKernel(device=device), pass_ops(device), device)


def decoder_without_blocks(loader: WeightLoader) -> Decoder:
    """A decoder without blocks or head: to embed tokens, and to run blocks that are loaded one at a time."""
    embedding = replace(loader, kernel=OnDemandKernel(loader.device)).linear("token_embd", bias=False)
    norm = loader.vector("output_norm.weight")
    return Decoder(loader.config, Weights(embedding, (), norm, embedding, loader.layers()), loader.ops)


def embed(
    decoder: Decoder, tokens: np.ndarray, *, memory: int | None = None, pieces: Pieces | None = None
) -> WindowStates:
    """The input of the first block for windows of tokens, int64 [windows, context]."""
    hidden = WindowStates(decoder.config, tokens, memory=memory)
    hidden.pieces = pieces or hidden.pieces
    for batch in hidden.batches():
        hidden.pieces.run(batch, lambda at: hidden.write(at, decoder.embedded(tokens[at])))
    return hidden


def advance(
    decoder: Decoder,
    layer: int,
    block: Block,
    hidden: WindowStates,
    routing: Routing | None = None,
    staged: Staged | None = None,
) -> None:
    """Replace the input of a block by its output, batch by batch. staged: see `pass_through`"""
    pass_through(
        decoder,
        layer,
        hidden,
        lambda x, shared, at: decoder.run_block(layer, block, x, shared),
        routing=routing,
        staged=staged,
    )


def meters_of(
    config: ModelConfig,
    layer: int,
    wanted: Wanted,
    seed: int,
    *,
    every: bool = False,
    rounded: frozenset[str] = frozenset(),
) -> dict[str, StatsMeter]:
    """One meter per group of a block, by the names of its linears (q, k and v share one).

    every: whether every token passes every expert, so that experts share their input
    rounded: linears whose Gram matrices may be those of inputs rounded to bfloat16
    """
    shapes = linear_shapes(config, layer)
    meters: dict[str, StatsMeter] = {}
    groups = linear_groups(config, layer)
    for group in with_shared_inputs(groups) if every else groups:
        cols, may_round = shapes[group.linears[0]][1], rounded.issuperset(group.linears)
        meter = StatsMeter(cols, gram=wanted.gram, sample=wanted.sample, seed=seed, rounded=may_round)
        meters |= dict.fromkeys(group.linears, meter)
    return meters


def recording(block: Block, prefix: str, meters: Mapping[str, StatsMeter], staged: Staged | None = None) -> Block:
    """The block with linears that record into `meters`. If linears share a meter, only the first one records.

    prefix: "blk.N.", for errors
    staged: where inputs wait until a batch of windows has come through; None: they are added at once
    """
    firsts: dict[int, str] = {}
    for name, meter in meters.items():
        firsts.setdefault(id(meter), name)
    adding = {name: counting(meters[name], f"{prefix}{name}") for name in firsts.values()}
    if staged is not None:
        adding = {name: staged.adding(name, add) for name, add in adding.items()}
    return block.with_linears({name: RecordedLinear.watching(block.linears[name], add) for name, add in adding.items()})


def counting(meter: StatsMeter, name: str) -> Callable[[Tensor], None]:
    """`meter.add` with errors that name the linear."""

    def add(x: Tensor) -> None:
        try:
            meter.add(x)
        except TensorError as error:
            raise not_finite(name, error) from error

    return add


def not_finite(name: str, error: TensorError) -> TensorError:
    """The error of a meter, with the linear's name and advice."""
    return TensorError(
        f"{error.message} during calibration; earlier weights are damaged, or a value overflows. Check the model with "
        "`bitsmith inspect --verify`, or calibrate on another text.",
        tensor=name,
    )


def _results(meters: Mapping[str, StatsMeter]) -> dict[str, Stats]:
    """One result per meter, shared by its linears."""
    done: dict[int, Stats] = {}
    for meter in meters.values():
        if id(meter) not in done:
            done[id(meter)] = meter.result()
    return {name: done[id(meter)] for name, meter in meters.items()}


def _head_stats(decoder: Decoder, hidden: WindowStates, wanted: Wanted, seed: int) -> Stats:
    meter = StatsMeter(decoder.config.hidden, gram=wanted.gram, sample=wanted.sample, seed=seed)
    add = counting(meter, HEAD)
    for at in hidden.batches():
        x = hidden.read(at).to(decoder.weights.output_norm.device)
        add(decoder.ops.rms_norm(x, decoder.weights.output_norm, decoder.config.norm_eps))
    return meter.result()
