"""Statistics of the input of a head that is the token embedding too: its rows are rounded before the blocks.

The head of another model is rounded last, on what the rounded blocks give it. A table that is both must be known before
the first block, whose input it is; so its statistics come from the original.
"""

from __future__ import annotations

import numpy as np
import torch

from bitsmith.calibration.collect import (
    HEAD,
    advance,
    block_loader,
    decoder_without_blocks,
    embed,
    not_finite,
    require_finite,
)
from bitsmith.calibration.resources import Resources
from bitsmith.calibration.stats import GramMeter, Stats
from bitsmith.calibration.work import BlockwiseWork
from bitsmith.errors import TensorError
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.runtime.torch.products import fast_products, with_rounded_products
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.work.folder import WorkFolder
from bitsmith.work.state import State

_STATE = "tied-head"  # in a work folder


def head_of(
    work: BlockwiseWork,
    checkpoint: Checkpoint,
    tokens: np.ndarray,
    resources: Resources,
    report: Report = silent,
    *,
    folder: WorkFolder | None = None,
) -> Stats | None:
    """The statistics that the embedding of some work needs, see `head_statistics`; None if it needs none.

    folder: where they are kept; what an earlier start has kept is used. None: nowhere
    """
    if not work.needs_head:
        return None
    found = None if folder is None else _read(folder)
    if found is None:
        found = head_statistics(checkpoint, tokens, resources, report)
        if folder is not None:
            folder.write(_STATE, {}, to_arrays(found))
    return found


def head_statistics(checkpoint: Checkpoint, tokens: np.ndarray, resources: Resources, report: Report = silent) -> Stats:
    """The Gram matrix of the head's input in the original, on windows of tokens, int64 [windows, context].

    Memory holds one block in float32, and hidden states, or their file on disk. Raises TensorError, naming the linear,
    if a weight or an input is not finite; UnsupportedError for an unknown architecture.
    """
    config, device = checkpoint.config, resources.device
    loader = block_loader(checkpoint, device)
    decoder, meter = decoder_without_blocks(loader), GramMeter(rounded=True)
    with torch.inference_mode(), fast_products(device):
        hidden = embed(decoder, tokens, memory=resources.memory, pieces=resources.pieces)
        for layer in range(config.layers):
            report(Progress("calibrate", layer, config.layers, "blocks", f"blk.{layer}"))
            block = loader.block(layer)
            require_finite(block, f"blk.{layer}.")
            advance(decoder, layer, with_rounded_products(block), hidden)
        for at in hidden.batches():
            x = hidden.read(at).to(decoder.weights.output_norm.device)
            meter.add(decoder.normed(x))
        report(Progress("calibrate", config.layers, config.layers, "blocks"))
        try:
            return meter.result()
        except TensorError as error:
            raise not_finite(HEAD, error) from error


def to_arrays(found: Stats) -> dict[str, np.ndarray]:
    """The statistics, for a state."""
    return {"gram": as_numpy(found.gram), "count": np.array([found.count], np.int64)}


def from_state(state: State) -> Stats | None:
    """Statistics of a state, see `to_arrays`; None if it holds none."""
    if "gram" not in state:
        return None
    gram, empty = np.array(state.array("gram")), np.zeros(0, np.float32)
    square, count = np.diagonal(gram).astype(np.float64), int(state.array("count")[0])
    return Stats(count, square, empty, empty, torch.from_numpy(gram), np.zeros((0, len(square)), np.float32))


def _read(work: WorkFolder) -> Stats | None:
    state = work.read(_STATE)
    if state is None:
        return None
    with state:
        return from_state(state)
