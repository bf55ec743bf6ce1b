"""What an operation of a block is: it declares its tensors and groups of linears, and computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bitsmith.models.arch.config import ModelConfig

Tensor = Any  # of the operations that the decoder runs on


@dataclass(frozen=True)
class LinearGroup:
    """Linears of a block that read the same input. Names are GGUF's, without "blk.N." and ".weight".

    Shared Hessians, rescaling and fused loading use the groups.
    name: name of the input ("attn_in", "o_proj_input", "ffn_in", "down_proj_input")
    linears: all linears that read the input; they share one Hessian
    producer: the norm or linear whose output rows are this input, so that scales can be folded into it; None if scales
        cannot be folded
    repeats: number of input columns that each row of the producer feeds. With grouped attention, query heads share a
        value head, and folded scales must be equal across these heads
    routed: whether a router chooses the tokens of the input, so that another model may choose others
    shared: where a router chooses tokens of one input, the name of that input; where every token passes every expert,
        the groups of this name have the same input
    alone: whether these linears alone read the producer, though the block has others that usually do
    """

    name: str
    linears: tuple[str, ...]
    producer: str | None
    repeats: int = 1
    routed: bool = False
    shared: str = ""
    alone: bool = False


@dataclass(frozen=True)
class BlockTensor:
    """A tensor of a block, by GGUF's name without "blk.N." and ".weight".

    kind: "vector"; "linear" for a matrix [rows, cols] of a product; "router" for such a matrix that is never quantized;
        "experts" for a stack of matrices [experts, rows, cols]. The matrix of one expert is a linear named "NAME.E";
        "taps" for those of a convolution [channels, taps], which stay floats
    bias: whether a vector of the same name with ".bias" belongs to it, one row for each expert
    ending: what follows the name in files; "" for nothing
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["vector", "linear", "router", "experts", "taps"]
    bias: bool = False
    ending: str = "weight"

    @property
    def key(self) -> str:
        """Its name in a block: "ffn_gate_inp", or "ffn_gate_inp.scale" for a vector beside it."""
        return self.name if self.ending == "weight" else self.stored

    @property
    def stored(self) -> str:
        """Its name in files, after "blk.N."."""
        return f"{self.name}.{self.ending}" if self.ending else self.name


class Run(Protocol):
    """One forward pass, as an operation sees it; see `bitsmith.runtime.decoder.Run`."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def ops(self) -> Any: ...
    @property
    def every_expert(self) -> bool:
        """Whether the linears of every expert are to see all tokens. The output is still what the router chose."""
        ...

    def routed(self, layer: int, chosen: Tensor) -> None:
        """Told of the experts that a router chose: int64 [tokens, used]."""
        ...

    def rotated(self, layer: int, x: Tensor) -> Tensor:
        """Queries or keys [batch, heads, n, head_dim], rotated as the layer rotates; see `LayerSpec.rope`."""
        ...

    def tempered(self, q: Tensor) -> Tensor:
        """Queries [batch, heads, n, head_dim] times the factors of their positions, see `ModelConfig.temperature`."""
        ...

    def visible(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values [batch, kv_heads, m, head_dim] of all tokens that some query sees, and the mask.

        New keys and values go to the cache, if there is one.
        """
        ...

    def visible_of(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same for a layer that uses the keys and values of an earlier one, see `LayerSpec.keys_of`."""
        ...

    def window(self, layer: int) -> int | None:
        """`window` of `Ops.attention`."""
        ...

    def layer_input(self, layer: int) -> Tensor:
        """The layer's embedding of each token, [batch, n, layer_width]; see `ModelConfig.layer_width`."""
        ...

    def recurrent(self, layer: int) -> tuple[Tensor, ...] | None:
        """What the layer kept of the tokens before, for each row, see its operation; None at the beginning."""
        ...

    def keep(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """Keep what the layer needs of the tokens up to now, if there is a cache."""
        ...

    @property
    def counts(self) -> Tensor | None:
        """Number of real tokens of each row, int64 [rows]; None if all are real."""
        ...


class Operation(Protocol):
    """An operation of a block. It has no state: sequences live in the run's cache."""

    def tensors(self, config: ModelConfig, layer: int) -> Iterator[BlockTensor]:
        """Its tensors, without the norms around it."""
        ...

    def stages(self, config: ModelConfig, layer: int, norm: str) -> tuple[tuple[LinearGroup, ...], ...]:
        """Its groups of linears, in the order of computation. Groups of a stage do not depend on each other.

        norm: the norm before the operation; "" if there is none
        """
        ...

    @property
    def last(self) -> str:
        """The linear whose output is the operation's output, and which alone reads its input; "" if there is none.

        Calibration then keeps the input of this linear, and does not compute the operation again.
        """
        ...

    def forward(self, run: Run, layer: int, block: Any, x: Tensor) -> Tensor:
        """float32 [batch, n, hidden] -> the same, without norms and residual.

        block: a `bitsmith.runtime.weights.Block`
        """
        ...
