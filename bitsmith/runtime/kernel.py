"""The seams of computing: the quantized linear (Kernel) and the few other operations a decoder needs (Ops)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bitsmith.containers.base import Extent, Source
from bitsmith.quant.tensor import QuantTensor, TensorInfo

if TYPE_CHECKING:
    from bitsmith.models.adapter import LowRank
    from bitsmith.quant.input_rounding import InputRounding

Tensor = Any  # a torch tensor or a numpy array


@dataclass(frozen=True)
class Weight:
    """One tensor of an opened file, read when asked.

    info: shape and layout
    rows: (start, stop) -> float32 [stop - start, cols]; a vector is one row
    input_rounding: how the input of a product is rounded; None: not at all
    extent: where its bytes lie in one piece; None if they lie in several
    codes: (start, stop) -> the rows as codes, or None; see `Source.codes`
    adapter: what an adapter adds to the product; None without one. `rows` and `codes` are without it
    """

    info: TensorInfo
    rows: Callable[[int, int], np.ndarray]
    input_rounding: InputRounding | None = None
    extent: Extent | None = None
    codes: Callable[[int, int], QuantTensor | None] = lambda start, stop: None
    adapter: LowRank | None = None

    @classmethod
    def of(cls, source: Source, name: str) -> Weight:
        """The tensor `name` of `source`. Raises as `Source.input_rounding` does."""

        def rows(start: int, stop: int) -> np.ndarray:
            return source.rows(name, start, stop)

        def codes(start: int, stop: int) -> QuantTensor | None:
            return source.codes(name, start, stop)

        return cls(source.tensors[name], rows, source.input_rounding(name), source.extent(name), codes)

    def part(self, first: int, count: int) -> Weight:
        """Some rows as a matrix of their own."""
        size = self.info.nbytes // max(self.info.rows, 1)
        info = replace(self.info, shape=(count, self.info.cols), nbytes=size * count)
        extent = None if self.extent is None else Extent(self.extent.path, self.extent.offset + first * size)
        return Weight(
            info,
            lambda start, stop: self.rows(first + start, first + stop),
            self.input_rounding,
            extent,
            lambda start, stop: self.codes(first + start, first + stop),
            None if self.adapter is None else self.adapter.part(first, count),
        )

    def vector(self) -> np.ndarray:
        """A one-dimensional tensor: float32 [n]."""
        return self.rows(0, 1).reshape(-1)


class Kernel(Protocol):
    """The product with a stored matrix. Only the kernel knows what `prepare` returns."""

    def supports(self, layout: str, device: str) -> bool:
        """Whether matrices of this layout (see `TensorInfo.layout`) can be prepared on this device."""
        ...

    def prepare(self, weight: Weight) -> Any:
        """Make a matrix [rows, cols] ready."""
        ...

    def linear(self, x: Tensor, prepared: Any) -> Tensor:
        """x float32 [..., cols] times the matrix transposed: float32 [..., rows]."""
        ...

    def gather(self, prepared: Any, ids: Tensor) -> Tensor:
        """Rows of the matrix: ids int64 [...] -> float32 [..., cols]. The embedding."""
        ...

    def nbytes(self, prepared: Any) -> int:
        """Bytes of the matrix in memory that a product reads."""
        ...


class Ops(Protocol):
    """What a decoder does besides products with its weights. All floats are float32.

    torch (`kernels.torch_ops`) is the reference. Tensors also need +, *, reshape, swapaxes, and reading and
    writing by slices and by int64 tensors, which torch and numpy spell the same.
    """

    def array(self, values: np.ndarray) -> Tensor:
        """A numpy array as a tensor of these operations, dtype kept."""
        ...

    def numpy(self, x: Tensor) -> np.ndarray:
        """The inverse of `array`."""
        ...

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Float32 zeros."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019)."""
        ...

    def unit(self, x: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) over the last dimension."""
        ...

    def rotation(self, positions: np.ndarray, frequencies: np.ndarray, magnitude: float) -> tuple[Tensor, Tensor]:
        """cos and sin of positions int64 [batch, n] times frequencies float32 [dim / 2], each multiplied by
        `magnitude`: float32 [batch, 1, n, dim / 2].
        """
        ...

    def rotate(self, x: Tensor, rotation: tuple[Tensor, Tensor], interleaved: bool) -> Tensor:
        """Turn the first dim dimensions of each head by pairs, (2 i, 2 i + 1) if interleaved, else (i, i + dim / 2).

        x: [batch, heads, n, head_dim]
        """
        ...

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visible: Tensor | None,
        *,
        scale: float | None = None,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        window: int | None = None,
    ) -> Tensor:
        """softmax(s(q k^T)) v. Grouped heads share keys and values without copies.

        q: [batch, heads, n, head_dim]; k, v: [batch, kv_heads, m, head_dim]
        visible: boolean [batch or 1, n, m], at least one key for each query; None if every key is visible
        scale: s multiplies by it; None for 1 / sqrt(head_dim)
        softcap: s then takes softcap * tanh(x / softcap); 0 for no cap
        sinks: float32 [heads], the score of a further key without a value; None for none
        window: where query i has the place of key i, and `visible` shows it the keys i - window < j <= i, or all j <= i
            if it is 0; None for any other `visible`
        Returns [batch, n, heads * head_dim].
        """
        ...

    def gated(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """act(gate) * up (Shazeer 2020): "silu", "gelu_tanh" (the tanh form), or "clamped" (gpt-oss)."""
        ...

    def sigmoid(self, x: Tensor) -> Tensor:
        """1 / (1 + exp(-x))."""
        ...

    def softplus(self, x: Tensor) -> Tensor:
        """ln(1 + exp(x))."""
        ...

    def normalized(self, x: Tensor) -> Tensor:
        """x / sqrt(sum(x^2) + 1e-6) over the last dimension."""
        ...

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The parts one after the other in the last dimension."""
        ...

    def convolution(
        self, x: Tensor, taps: Tensor, before: Tensor | None, counts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """silu of the sum of the last inputs of each channel times its taps, and the last inputs of each row.

        x: [rows, n, channels]; taps: [channels, taps], the newest input's last
        before, and what is returned: [rows, taps - 1, channels]; None at the beginning
        counts: int64 [rows], number of real tokens; None: all
        """
        ...

    def delta_rule(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The gated delta rule, see `bitsmith.models.arch.operations.delta`, and the state after it.

        q, k: [rows, n, heads, key_dim]; v: [rows, n, heads, value_dim]
        decay: logarithm of what a token keeps of the state, at most 0; rate: [rows, n, heads] both
        state: [rows, heads, key_dim, value_dim]; None at the beginning
        Returns [rows, n, heads, value_dim].
        """
        ...

    def softcapped(self, x: Tensor, cap: float) -> Tensor:
        """cap * tanh(x / cap)."""
        ...

    def route(self, scores: Tensor, used: int, how: str, *, normalize: bool) -> tuple[Tensor, Tensor]:
        """The experts of each token, [tokens, experts] -> weights float32 and numbers int64, [tokens, used] each.

        how: "softmax" over all experts, or over those that are "chosen"
        normalize: divide the weights of a token by their sum
        """
        ...

    def where(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of the true entries of a matrix, int64 each."""
        ...

    def add_rows(self, x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        """x with `values` added to some of its rows, which differ."""
        ...
