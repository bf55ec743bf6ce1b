"""A model whose matrices can be exchanged, and whose gradients are seen matrix by matrix, without being kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as recomputed

from bitsmith.calibration.sensitivity.footprint import ACTIVATIONS, KEPT
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.torch.products import multiplies_bfloat16
from bitsmith.runtime.weights import Block, Linear, load_weights, weight_reader
from bitsmith.system.progress import Report, silent

EMBEDDING, HEAD = "token_embd", "output"


class Sink:
    """Where gradients go, as their factors. The base class drops them."""

    def product(self, name: str, x: Tensor, gradient: Tensor) -> None:
        """Of a product: inputs [..., cols] and gradients of outputs [..., rows], of the model's `gradients`."""

    def rows(self, name: str, ids: Tensor, gradient: Tensor) -> None:
        """Of rows that were read: int64 [windows, n], and their gradients float32 [windows, n, cols]."""


@dataclass
class _Shared:
    """What the linears of a model share.

    values: matrices that stand in place of the model's own, by name
    dtype: of the products of the backward pass
    """

    dtype: torch.dtype
    values: Mapping[str, Tensor] = field(default_factory=dict)
    sink: Sink = field(default_factory=Sink)


@dataclass(frozen=True)
class _Watched:
    """A kernel for one matrix. It computes with what stands in place of it, and tells the sink of gradients."""

    name: str
    shared: _Shared

    def supports(self, layout: str, device: str) -> bool:
        return True

    def prepare(self, weight: Weight) -> Any:
        raise NotImplementedError

    def nbytes(self, prepared: Tensor) -> int:
        return prepared.nbytes

    def linear(self, x: Tensor, prepared: Tensor) -> Tensor:
        matrix = self.shared.values.get(self.name, prepared)
        told = partial(self.shared.sink.product, self.name)
        found: Tensor = _Product.apply(x, matrix, self.shared.dtype, told)  # type: ignore[no-untyped-call]
        return found

    def gather(self, prepared: Tensor, ids: Tensor) -> Tensor:
        found = self.shared.values.get(self.name, prepared)[ids]
        if torch.is_grad_enabled():
            found.requires_grad_(True)
            sink = self.shared.sink
            found.register_hook(lambda gradient: sink.rows(self.name, ids, gradient))  # type: ignore[no-untyped-call]
        return found


class _Product(torch.autograd.Function):
    """x W^T, whose backward pass hands the factors of W's gradient on, in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: Tensor, dtype: torch.dtype, told: Callable[[Tensor, Tensor], None]
    ) -> Tensor:
        ctx.save_for_backward(x, matrix)
        ctx.dtype, ctx.told = dtype, told
        return functional.linear(x, matrix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        gradient = gradient.to(ctx.dtype)
        ctx.told(x.to(ctx.dtype), gradient)
        return (gradient @ matrix.to(ctx.dtype)).float(), None, None, None


def gradients_of(device: str) -> torch.dtype:
    """The dtype of the products of a backward pass, see `WatchedModel`."""
    return torch.bfloat16 if device == "cpu" and multiplies_bfloat16() else torch.float32


class WatchedModel:
    """The original in float32.

    matrices: float32 [rows, cols], by GGUF name without ".weight"; experts one by one. A head that is the embedding is
        under the embedding's name
    gradients: dtype of the products of a backward pass: bfloat16 on CPUs that multiply it, as it loses less than the
        random directions do; float32 elsewhere
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str = "cpu", report: Report = silent) -> None:
        """Reads all weights. Raises UnsupportedError for an unknown architecture."""
        config = checkpoint.config
        loaded = load_weights(
            config,
            weight_reader(checkpoint),
            DenseKernel(device=device),
            TorchOps(device),
            device=device,
            report=report,
        )
        self.config, self.device = config, device
        self.gradients = gradients_of(device)
        self._shared = _Shared(self.gradients)
        self.matrices: dict[str, Tensor] = {}
        embedding = self._watch(EMBEDDING, loaded.embedding)
        output = embedding if config.tied else self._watch(HEAD, loaded.output)
        blocks = tuple(self._block(layer, block) for layer, block in enumerate(loaded.blocks))
        self._decoder = Decoder(
            config, replace(loaded, embedding=embedding, output=output, blocks=blocks), TorchOps(device)
        )

    def _watch(self, name: str, linear: Linear) -> Linear:
        self.matrices[name] = linear.prepared
        return replace(linear, kernel=_Watched(name, self._shared))

    def _block(self, layer: int, block: Block) -> Block:
        return block.with_linears(
            {name: self._watch(f"blk.{layer}.{name}", linear) for name, linear in block.linears.items()}
        )

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows of each matrix."""
        return {name: len(each) for name, each in self.matrices.items()}

    def exchange(self, values: Mapping[str, Tensor]) -> None:
        """Compute with these matrices in place of the model's own, by name; an empty mapping: with its own."""
        self._shared.values = values

    def hidden(self, ids: np.ndarray) -> Tensor:
        """Tokens int64 [windows, n] -> float32 [windows, n, hidden] after the last block, without gradients."""
        with torch.no_grad():
            return self._run(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states -> float32 [windows, n, vocab]."""
        found: Tensor = self._decoder.logits(hidden)
        return found

    def backward(self, ids: np.ndarray, gradient_of: Callable[[Tensor], Tensor], sink: Sink) -> Tensor:
        """A forward and a backward pass; the sink gets the gradients of all matrices. The result is that of `hidden`.

        gradient_of: logits float32 [windows, n, vocab] -> the gradient of the loss, the same shape
        """
        self._shared.sink = sink
        try:
            with torch.enable_grad():
                hidden = self._run(ids)
                logits = self._decoder.logits(hidden)
                logits.backward(gradient_of(logits.detach()))
        finally:
            self._shared.sink = Sink()
        return hidden.detach()

    def _run(self, ids: np.ndarray) -> Tensor:
        decoder, config = self._decoder, self.config
        x: Tensor = decoder.embedded(ids)
        shared = decoder.place(ids.shape[1], ids)
        size = ids.size * config.hidden * config.layers * ACTIVATIONS * 4
        again = torch.is_grad_enabled() and size > KEPT and not config.kept_layers
        for layer, block in enumerate(decoder.weights.blocks):
            run = partial(self._run_block, layer, block, shared)
            x = recomputed(run, x, use_reentrant=False) if again else run(x)
        return x

    def _run_block(self, layer: int, block: Block, shared: Any, x: Tensor) -> Tensor:
        found: Tensor = self._decoder.run_block(layer, block, x, shared)
        return found
