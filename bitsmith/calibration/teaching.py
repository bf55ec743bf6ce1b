"""The predictions of the model that another one is distilled from, block by block in bounded memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.collect import advance, decoder_without_blocks, embed
from bitsmith.calibration.distilled import TopLogits
from bitsmith.calibration.resources import Resources
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.quant.formats.base import Format
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.overridden import rounded
from bitsmith.runtime.torch.core_ops import pass_ops
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.products import with_rounded_products
from bitsmith.runtime.weights import Linear, WeightLoader, weight_reader
from bitsmith.system.progress import Progress, Report, silent


def predictions(
    checkpoint: Checkpoint, tokens: np.ndarray, resources: Resources, report: Report = silent, *, coarse: bool = False
) -> TopLogits:
    """What a model predicts for windows of tokens, int64 [windows, context].

    coarse: products of blocks may be taken in bfloat16, where the processor has them
    Memory holds one block in float32, and hidden states and predictions, or their files on disk. Raises
    UnsupportedError for an unknown architecture.
    """
    device = resources.device
    loader = WeightLoader(
        checkpoint.config, weight_reader(checkpoint), DenseKernel(device=device), pass_ops(device), device
    )
    decoder = with_ends(loader, decoder_without_blocks(loader), None)
    share = None if resources.memory is None else resources.memory // 2
    layers = checkpoint.config.layers
    with torch.inference_mode():
        hidden = embed(decoder, tokens, memory=share)
        for layer in range(layers):
            report(Progress("teach", layer, layers, "blocks", f"blk.{layer}"))
            block = loader.block(layer)
            advance(decoder, layer, with_rounded_products(block) if coarse else block, hidden)
        report(Progress("teach", layers, layers, "blocks"))

        def logits(x: Tensor) -> Tensor:
            found: Tensor = decoder.logits(x.to(decoder.weights.output_norm.device))
            return found

        return TopLogits.of(hidden, logits, checkpoint.config.vocab, report, memory=share)


def with_ends(loader: WeightLoader, decoder: Decoder, format: Format | None) -> Decoder:
    """The decoder with its embedding in a format, None for floats as they are, and with its head."""
    weight = loader.read("token_embd.weight")
    weight = weight if format is None else rounded("token_embd.weight", weight, format.name)
    table = Linear(loader.kernel, loader.kernel.prepare(weight))
    output = table if decoder.config.tied else loader.linear("output", bias=False)
    return Decoder(decoder.config, replace(decoder.weights, embedding=table, output=output), decoder.ops)
