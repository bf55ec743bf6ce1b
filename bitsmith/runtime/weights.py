"""The weights of a decoder, made ready for its kernel, by GGUF tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.names import hf_name
from bitsmith.models.arch.tensors import check_tensors
from bitsmith.runtime.kernel import Kernel, Ops, Tensor, Weight
from bitsmith.system.progress import Progress, Report, silent

if TYPE_CHECKING:
    from bitsmith.models.checkpoint import Checkpoint
    from bitsmith.quant.input_rounding import InputRounding

WeightReader = Callable[[str], Weight]  # GGUF tensor name -> the tensor, wherever it lies

LINEARS: Mapping[str, str] = {  # GGUF name of a block's linear, without "blk.N." and ".weight" -> field of `Block`
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "output",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}


def weight_reader(checkpoint: Checkpoint) -> WeightReader:
    """What finds a checkpoint's tensors by their GGUF names.

    Raises FileError where the tensors are not those its configuration promises, UnsupportedError for an unknown
    architecture.
    """
    config, source = checkpoint.config, checkpoint.source
    check_tensors(config, source.tensors, naming=checkpoint.naming, origin=str(source.path))

    def read(name: str) -> Weight:
        own = name if checkpoint.naming == "gguf" else hf_name(name)
        assert own is not None, name
        return Weight.of(source, own)

    return read


@dataclass(frozen=True)
class Linear:
    """A matrix [rows, cols] prepared by its kernel, its bias [rows] or None, and how its input is rounded."""

    kernel: Kernel
    prepared: Any
    bias: Tensor | None = None
    input_rounding: InputRounding | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [..., cols] -> float32 [..., rows]."""
        x = x if self.input_rounding is None else self.input_rounding.rounded(x)
        y = self.kernel.linear(x, self.prepared)
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
    """One layer. Norms are float32 vectors; q_norm and k_norm are None but for Qwen3."""

    attn_norm: Tensor
    q: Linear
    k: Linear
    v: Linear
    output: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    ffn_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class Weights:
    """A whole model. `output` is `embedding` where the two are tied."""

    embedding: Linear
    blocks: tuple[Block, ...]
    output_norm: Tensor
    output: Linear

    @property
    def token_bytes(self) -> int:
        """Bytes of matrices, as they lie in memory, that a generated token reads; not its one row of the embedding."""
        linears: list[Linear] = [getattr(block, field) for block in self.blocks for field in LINEARS.values()]
        return sum(linear.nbytes for linear in linears) + self.output.nbytes


def load_weights(
    config: ModelConfig, read: WeightReader, kernel: Kernel, ops: Ops, *, device: str = "cpu", report: Report = silent
) -> Weights:
    """Read and prepare every tensor, layer by layer. Raises UnsupportedError where the kernel cannot take a layout."""
    loader = WeightLoader(config, read, kernel, ops, device)
    embedding = loader.linear("token_embd", bias=False)
    blocks = []
    for layer in range(config.layers):
        report(Progress("load", layer, config.layers, "layers", f"blk.{layer}"))
        blocks.append(loader.block(f"blk.{layer}."))
    output = embedding if config.tied else loader.linear("output", bias=False)
    report(Progress("load", config.layers, config.layers, "layers"))
    return Weights(embedding, tuple(blocks), loader.vector("output_norm.weight"), output)


@dataclass(frozen=True)
class WeightLoader:
    """Reads and prepares parts of a model, for those who do not want all of it at once.

    Every method raises UnsupportedError where the kernel cannot take a layout.
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
        weight = self.read(f"{name}.weight")
        if not self.kernel.supports(weight.info.layout, self.device):
            raise UnsupportedError(
                f"{name}.weight: the {type(self.kernel).__name__} cannot run {weight.info.layout} on {self.device}."
            )
        own_bias = self.vector(f"{name}.bias") if bias else None
        return Linear(self.kernel, self.kernel.prepare(weight), own_bias, weight.input_rounding)

    def block(self, prefix: str) -> Block:
        """All of one layer; prefix: "blk.N."."""
        config = self.config
        return Block(
            attn_norm=self.vector(f"{prefix}attn_norm.weight"),
            q=self.linear(f"{prefix}attn_q", bias=config.qkv_bias),
            k=self.linear(f"{prefix}attn_k", bias=config.qkv_bias),
            v=self.linear(f"{prefix}attn_v", bias=config.qkv_bias),
            output=self.linear(f"{prefix}attn_output", bias=config.output_bias),
            q_norm=self.vector(f"{prefix}attn_q_norm.weight") if config.qk_norm else None,
            k_norm=self.vector(f"{prefix}attn_k_norm.weight") if config.qk_norm else None,
            ffn_norm=self.vector(f"{prefix}ffn_norm.weight"),
            gate=self.linear(f"{prefix}ffn_gate", bias=config.mlp_bias),
            up=self.linear(f"{prefix}ffn_up", bias=config.mlp_bias),
            down=self.linear(f"{prefix}ffn_down", bias=config.mlp_bias),
        )
