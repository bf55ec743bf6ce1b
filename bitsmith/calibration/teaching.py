"""The predictions of the model that another one is distilled from, block by block in bounded memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.beside import WindowStates
from bitsmith.calibration.collect import advance, block_loader, decoder_without_blocks, embed
from bitsmith.calibration.distilled import LastStates
from bitsmith.calibration.resources import Resources
from bitsmith.calibration.stored_embedding import StoredEmbedding
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.torch.products import with_rounded_products
from bitsmith.runtime.weights import Linear, WeightLoader
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.work.folder import WorkFolder

_HIDDEN = "teacher"  # state of a work folder


def predictions(
    checkpoint: Checkpoint,
    tokens: np.ndarray,
    resources: Resources,
    report: Report = silent,
    *,
    coarse: bool = False,
    work: WorkFolder | None = None,
) -> LastStates:
    """What a model predicts for windows of tokens, int64 [windows, context].

    coarse: products of blocks may be taken in bfloat16, where the processor has them
    work: where hidden states are kept; what an earlier start has kept is continued. None: nowhere
    Memory holds one block in float32, and hidden states, or their file on disk. Raises UnsupportedError for an
    unknown architecture.
    """
    share = None if resources.memory is None else resources.memory // 2
    device = resources.device
    loader = block_loader(checkpoint, device)
    decoder = with_ends(loader, decoder_without_blocks(loader), None)
    layers = checkpoint.config.layers
    with torch.inference_mode():
        hidden = embed(decoder, tokens, memory=share)
        for layer in range(0 if work is None else _resume(work, hidden), layers):
            report(Progress("teach", layer, layers, "blocks", f"blk.{layer}"))
            block = loader.block(layer)
            advance(decoder, layer, with_rounded_products(block) if coarse else block, hidden)
            if work is not None and work.pace.due:
                _keep(work, layer + 1, hidden)
        report(Progress("teach", layers, layers, "blocks"))

    alone = Decoder(decoder.config, replace(decoder.weights, embedding=decoder.weights.output), decoder.ops)

    def head(x: Tensor) -> Tensor:
        found: Tensor = alone.logits(x.to(alone.weights.output_norm.device))
        return found

    return LastStates(hidden, head)


def _resume(work: WorkFolder, hidden: WindowStates) -> int:
    """The block before which an earlier start has kept hidden states; they are taken over."""
    state = work.read(_HIDDEN)
    if state is None:
        return 0
    with state:
        hidden.restore(state, "hidden")
        return int(state.values["layer"])


def _keep(work: WorkFolder, layer: int, hidden: WindowStates) -> None:
    with work.pace.keeping():
        if work.write(_HIDDEN, {"layer": layer}, hidden.kept("hidden")):
            work.add([{"said": f"block {layer} of the model that teaches"}])


def with_ends(loader: WeightLoader, decoder: Decoder, embedding: StoredEmbedding | None) -> Decoder:
    """The decoder with its embedding as the output stores it, None for floats as they are, and with its head."""
    weight = loader.read("token_embd.weight") if embedding is None else embedding.whole()
    table = Linear(loader.kernel, loader.kernel.prepare(weight))
    output = table if decoder.config.tied else loader.linear("output", bias=False)
    return Decoder(decoder.config, replace(decoder.weights, embedding=table, output=output), decoder.ops)
