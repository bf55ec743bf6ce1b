"""Rounding block by block: each block's linears see the inputs that the quantized blocks before them give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bitsmith.arch.groups import LinearGroup, linear_groups
from bitsmith.calibration.collect import Wanted, advance, embed, hollow_decoder, meters_of, recording
from bitsmith.calibration.hidden import HiddenStates
from bitsmith.calibration.sources import CalibrationTokens
from bitsmith.checkpoint import Checkpoint
from bitsmith.formats.base import Format, NeedsExtent, Params
from bitsmith.formats.precision import as_numpy
from bitsmith.kernels.dense import DenseKernel
from bitsmith.kernels.torch_ops import TorchOps
from bitsmith.model.decoder import Decoder
from bitsmith.model.language_model import weight_reader
from bitsmith.model.weights import LINEARS, Block, Linear, WeightLoader
from bitsmith.progress import Progress, Report, silent
from bitsmith.rounders.gptq import SLAB_ROWS, GptqReport, gptq_rows, joined
from bitsmith.rounders.hessian import Factor, prepare
from bitsmith.stats import Stats


@dataclass(frozen=True)
class RoundedLinear:
    """A matrix of a block, rounded.

    name: GGUF's without ".weight" ("blk.0.attn_q"); rows are in the source's order
    codes: uint8 [rows, cols]; params: in stored precision; numpy
    report: what it cost under the Hessian
    """

    name: str
    codes: np.ndarray
    params: Params
    report: GptqReport


def gptq_blocks(
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    formats: Mapping[str, Format],
    *,
    memory: int | None = None,
    report: Report = silent,
) -> Iterator[RoundedLinear]:
    """GPTQ (Frantar et al. 2022) over all blocks. Linears of a group share a Hessian; groups are taken in the order
    they are computed, each after the ones before it were rounded.

    formats: by GGUF name without ".weight"; linears that are not named stay as they are
    memory: bytes for hidden states, see `HiddenStates`
    One block's weights are held at a time, in float32, with one Hessian and its factor. Same tokens, same codes.
    Raises TensorError where an input is not finite, naming the linear.
    """
    config = checkpoint.config
    loader = WeightLoader(config, weight_reader(checkpoint), DenseKernel(), TorchOps(), "cpu")
    decoder = hollow_decoder(loader)
    with torch.inference_mode():
        hidden = embed(decoder, tokens.tokens, memory=memory)
        for layer in range(config.layers):
            report(Progress("gptq", layer, config.layers, "blocks", f"blk.{layer}"))
            prefix = f"blk.{layer}."
            block = loader.block(prefix)
            for group in linear_groups(config):
                named = {name: formats[prefix + name] for name in group.linears if prefix + name in formats}
                if not named:
                    continue
                stats = _input_of(decoder, layer, block, group, hidden)
                assert stats.gram is not None
                factor = prepare(stats.gram / max(stats.count, 1), order="activation")
                del stats
                for name, format in named.items():
                    linear: Linear = vars(block)[LINEARS[name]]
                    rounded, values = _round(prefix + name, linear.prepared, format, factor)
                    yield rounded
                    block = replace(block, **{LINEARS[name]: replace(linear, prepared=values)})
            advance(decoder, layer, block, hidden)
    report(Progress("gptq", config.layers, config.layers, "blocks"))


def _input_of(decoder: Decoder, layer: int, block: Block, group: LinearGroup, hidden: HiddenStates) -> Stats:
    """Statistics of one group's input, gram included, the block being as it is now."""
    meters = meters_of(decoder.config, Wanted(gram=True), 0)
    meter = meters[group.linears[0]]
    recorded = recording(block, f"blk.{layer}.", {group.linears[0]: meter})
    for at in hidden.batches():
        x = hidden.read(at)
        decoder.run_block(layer, recorded, x, decoder.place(tuple(x.shape[:2]), 0))
    return meter.result()


def _round(name: str, weight: Tensor, format: Format, factor: Factor) -> tuple[RoundedLinear, Tensor]:
    """One matrix, slab by slab, and the float32 values its codes stand for."""
    if isinstance(format, NeedsExtent):
        format = format.with_extent(float(weight.min()), float(weight.max()))
    slabs = [
        gptq_rows(weight[start : start + SLAB_ROWS], format, factor) for start in range(0, weight.shape[0], SLAB_ROWS)
    ]
    params = {part: np.concatenate([as_numpy(slab.params[part]) for slab in slabs]) for part in slabs[0].params}
    codes = np.concatenate([as_numpy(slab.codes) for slab in slabs])
    values = torch.from_numpy(np.ascontiguousarray(format.grid(params).values(codes)))
    return RoundedLinear(name, codes, params, joined(slab.report for slab in slabs)), values
