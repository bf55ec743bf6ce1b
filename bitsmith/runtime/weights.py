"""The weights of a decoder, made ready for its kernel, by GGUF tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bitsmith.containers.derived import with_derived
from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.block import block_tensors
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.tensors import check_tensors, file_tensors
from bitsmith.models.overrides import Overrides
from bitsmith.runtime.kernel import Kernel, Ops, Tensor, Weight
from bitsmith.runtime.layer_inputs import LayerTable, LayerWeights
from bitsmith.system.progress import Progress, Report, silent

if TYPE_CHECKING:
    from bitsmith.models.arch.operations.base import BlockTensor
    from bitsmith.models.checkpoint import Checkpoint
    from bitsmith.quant.input_rounding import InputRounding

WeightReader = Callable[[str], Weight]  # GGUF tensor name -> the tensor, wherever it lies

NORMS = ("attn_norm", "ffn_norm")  # of a dense block of Llama
HEAD_NORMS = ("attn_q_norm", "attn_k_norm")  # of queries and keys, in some families


def weight_reader(checkpoint: Checkpoint) -> WeightReader:
    """A function that finds the tensors of a checkpoint by their GGUF names.

    Raises FileError if the tensors are not those that the configuration requires, UnsupportedError for an unknown
    architecture.
    """
    config, source = checkpoint.config, checkpoint.source
    check_tensors(config, source.tensors, naming=checkpoint.naming, origin=str(source.path), ignored=checkpoint.ignored)
    found = file_tensors(config, source.tensors, checkpoint.naming)
    reader, overrides = with_derived(source, found.derived), checkpoint.overrides

    def read(name: str) -> Weight:
        weight = Weight.of(reader, found.places[name])
        if overrides != Overrides():
            from bitsmith.runtime.overridden import overridden  # and with it all formats

            weight = overridden(name, weight, overrides)
        return weight if overrides.adapter is None else replace(weight, adapter=overrides.adapter.of(name))

    return read


@dataclass(frozen=True)
class Linear:
    """A matrix [rows, cols] prepared by its kernel, its bias [rows] or None, and how its input is rounded.

    adapter: the transposed factors of what an adapter adds, float32 [cols, rank] and [rank, rows]; its input is not
        rounded
    """

    kernel: Kernel
    prepared: Any
    bias: Tensor | None = None
    input_rounding: InputRounding | None = None
    adapter: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [..., cols] -> float32 [..., rows]."""
        rounded = x if self.input_rounding is None else self.input_rounding.rounded(x)
        y = self.kernel.linear(rounded, self.prepared)
        if self.adapter is not None:
            down, up = self.adapter
            y = y + (x @ down) @ up
        return y if self.bias is None else y + self.bias

    def gather(self, ids: Tensor) -> Tensor:
        """Rows of the matrix: int64 [...] -> float32 [..., cols]."""
        return self.kernel.gather(self.prepared, ids)

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads of the matrix."""
        return self.kernel.nbytes(self.prepared)


@dataclass(frozen=True)
class Block:
    """One layer, as named tensors. Names are GGUF's without "blk.N." and ".weight".

    norms: float32 vectors: norms, and others such as attention sinks; and the taps of convolutions
    linears: the matrices of products; the experts of a stack one by one, "ffn_up_exps.3"
    """

    norms: Mapping[str, Tensor]
    linears: Mapping[str, Linear]

    @property
    def device(self) -> Any:
        """The device of its tensors."""
        return next(iter(self.norms.values())).device

    def with_linears(self, linears: Mapping[str, Linear]) -> Block:
        """The block with some of its linears replaced."""
        return replace(self, linears={**self.linears, **linears})

    def with_norms(self, norms: Mapping[str, Tensor]) -> Block:
        """The block with some of its norms replaced."""
        return replace(self, norms={**self.norms, **norms})


@dataclass(frozen=True)
class Weights:
    """A whole model. If the embedding is tied, `output` is `embedding`. layers: None without embeddings of layers"""

    embedding: Linear
    blocks: tuple[Block, ...]
    output_norm: Tensor
    output: Linear
    layers: LayerWeights | None = None

    def token_bytes(self, used: float) -> int:
        """Bytes of matrices in memory that one generated token reads, without its row of the embedding.

        used: share of the experts that a token passes
        """
        named = [pair for block in self.blocks for pair in block.linears.items()]
        found = sum(linear.nbytes * (used if "_exps." in name else 1.0) for name, linear in named)
        if self.layers is not None:
            found += sum(linear.nbytes for linear in self.layers.projections)
        return round(found) + self.output.nbytes


def load_weights(
    config: ModelConfig, read: WeightReader, kernel: Kernel, ops: Ops, *, device: str = "cpu", report: Report = silent
) -> Weights:
    """Read and prepare every tensor, layer by layer. Raises UnsupportedError if the kernel cannot take a layout."""
    loader = WeightLoader(config, read, kernel, ops, device)
    embedding = loader.linear("token_embd", bias=False)
    blocks = []
    for layer in range(config.layers):
        report(Progress("load", layer, config.layers, "layers", f"blk.{layer}"))
        blocks.append(loader.block(layer))
    output = embedding if config.tied else loader.linear("output", bias=False)
    report(Progress("load", config.layers, config.layers, "layers"))
    return Weights(embedding, tuple(blocks), loader.vector("output_norm.weight"), output, loader.layers())


@dataclass(frozen=True)
class WeightLoader:
    """Reads and prepares a model in parts.

    Every method raises UnsupportedError if the kernel cannot take a layout.
    """

    config: ModelConfig
    read: WeightReader
    kernel: Kernel
    ops: Ops
    device: str

    def vector(self, name: str) -> Tensor:
        """A norm or a bias by its full GGUF name: float32 [n]."""
        return self.ops.array(self.read(name).vector())

    def linear(self, name: str, *, bias: bool) -> Linear:
        """A matrix by its GGUF name without ".weight"."""
        weight = self._matrix(name)
        own_bias = self.vector(f"{name}.bias") if bias else None
        low, adapter = weight.adapter, None
        if low is not None:
            adapter = self.ops.array(low.down.T.copy()), self.ops.array(low.scaled_up.T.copy())
        return Linear(self.kernel, self.kernel.prepare(weight), own_bias, weight.input_rounding, adapter)

    def block(self, layer: int) -> Block:
        """All of one layer."""
        prefix = f"blk.{layer}."
        norms: dict[str, Tensor] = {}
        linears: dict[str, Linear] = {}
        for tensor in block_tensors(self.config, layer):
            if tensor.kind == "vector":
                norms[tensor.key] = self.vector(f"{prefix}{tensor.stored}")
            elif tensor.kind == "taps":
                norms[tensor.key] = self.ops.array(self.read(f"{prefix}{tensor.stored}").rows(0, tensor.shape[0]))
            elif tensor.kind == "experts":
                linears |= self._experts(f"{prefix}{tensor.name}", tensor)
            else:
                linears[tensor.name] = self.linear(f"{prefix}{tensor.name}", bias=tensor.bias)
        return Block(norms, linears)

    def layers(self) -> LayerWeights | None:
        """What the embeddings of layers are made of; None if the model has none."""
        width = self.config.layer_width
        if not width:
            return None
        whole = self._matrix("per_layer_model_proj")
        parts = (whole.part(layer * width, width) for layer in range(self.config.layers))
        return LayerWeights(
            self.ops,
            width,
            LayerTable(self.read("per_layer_token_embd.weight")),
            tuple(Linear(self.kernel, self.kernel.prepare(part), None, whole.input_rounding) for part in parts),
            self.vector("per_layer_proj_norm.weight"),
        )

    def _experts(self, name: str, tensor: BlockTensor) -> dict[str, Linear]:
        """The matrices of a stack, each as a linear."""
        whole, (count, rows, _) = self._matrix(name), tensor.shape
        biases = self.read(f"{name}.bias").rows(0, count) if tensor.bias else None
        found = {}
        for e in range(count):
            bias = None if biases is None else self.ops.array(biases[e])
            part = whole.part(e * rows, rows)
            found[f"{tensor.name}.{e}"] = Linear(self.kernel, self.kernel.prepare(part), bias, whole.input_rounding)
        return found

    def _matrix(self, name: str) -> Weight:
        weight = self.read(f"{name}.weight")
        if not self.kernel.supports(weight.info.layout, self.device):
            raise UnsupportedError(
                f"{name}.weight: the {type(self.kernel).__name__} cannot run {weight.info.layout} on {self.device}."
            )
        return weight
