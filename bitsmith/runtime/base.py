"""What generation and evaluation need of a decoder, whatever it runs on."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from bitsmith.models.arch.config import ModelConfig
from bitsmith.runtime.kernel import Tensor


class AnyCache(Protocol):
    """Keys and values of `capacity` positions for each sequence of a batch; `length` of them are filled."""

    capacity: int
    batch: int
    length: int
    padding: np.ndarray

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on. Raises UsageError for a length beyond what is filled."""
        ...

    def grown(self, capacity: int) -> AnyCache:
        """A copy with room for `capacity` positions."""
        ...


class AnyDecoder(Protocol):
    """`model.decoder.Decoder` on torch, `model.native.CoreDecoder` on the C++ core."""

    config: ModelConfig

    def new_cache(self, capacity: int, *, batch: int = 1, padding: np.ndarray | None = None) -> AnyCache:
        """An empty cache."""
        ...

    def forward(
        self, tokens: np.ndarray, cache: Any = None, *, padding: np.ndarray | None = None, first: int = 0
    ) -> Tensor:
        """Logits of the next token, float32 [batch, n - first, vocab]."""
        ...

    def prefill(self, tokens: np.ndarray, cache: Any, *, chunk: int = 512) -> Tensor:
        """Feed a prompt; logits of the last position, float32 [batch, vocab]."""
        ...

    def numpy(self, x: Tensor) -> np.ndarray:
        """What the others return, as numpy."""
        ...

    @property
    def token_bytes(self) -> int:
        """Bytes of matrices, as they lie in memory, that one generated token reads."""
        ...
