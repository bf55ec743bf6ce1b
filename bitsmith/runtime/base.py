"""What generation and evaluation need of a decoder, whatever it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bitsmith.models.arch.config import ModelConfig
from bitsmith.runtime.kernel import Tensor

if TYPE_CHECKING:
    from bitsmith.system.core_choices import CoreChoices


class AnyCache(Protocol):
    """Keys and values of `batch` slots with room for `capacity` positions each; every slot holds one sequence.

    lengths: int64 [batch], positions filled of each slot. Sequences start and end apart: `truncate(slot, 0)` empties
        a slot for another.
    """

    capacity: int
    batch: int
    lengths: np.ndarray

    def reusable(self, slot: int, length: int) -> int:
        """The most positions, at most `length`, that a slot can be cut to; `length` is at most what is filled.

        Keys and values can be cut anywhere. A recurrent state cannot go back.
        """
        ...

    def truncate(self, slot: int, length: int) -> None:
        """Forget a slot's positions from `length` on; 0 empties it.

        Raises UsageError where there is no such slot, for a length beyond what is filled, or for one that `reusable`
        does not give.
        """
        ...

    def copy_slot(self, source: int, slot: int, length: int) -> None:
        """Fill a slot with the first `length` positions of another one. Raises UsageError as `truncate` does."""
        ...

    def grown(self, capacity: int) -> AnyCache:
        """A copy with room for `capacity` positions a slot. Raises UsageError for fewer than are filled."""
        ...


class AnyDecoder(Protocol):
    """`runtime.decoder.Decoder` on torch, `runtime.core_decoder.CoreDecoder` on the C++ core."""

    config: ModelConfig

    def new_cache(self, capacity: int, *, batch: int = 1) -> AnyCache:
        """An empty cache of `batch` slots."""
        ...

    def forward(
        self,
        tokens: np.ndarray,
        cache: Any = None,
        *,
        slots: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        first: int = 0,
    ) -> Tensor:
        """Logits of the next token, float32 [rows, n - first, vocab]; see `Decoder.forward`."""
        ...

    def hidden(
        self,
        tokens: np.ndarray,
        cache: Any = None,
        *,
        slots: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        single: int | None = None,
    ) -> Tensor:
        """Hidden states after the last layer, before the final norm: float32 [rows, n, hidden]; see `forward`.

        single: so many rows at the front are computed as if each of their tokens came alone, the others as prompts are.
            With the core's int16 and int8 the result of a row then does not depend on the other rows, bit for bit.
            None: the core chooses
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and output projection: float32 [..., hidden] -> [..., vocab]."""
        ...

    def normed(self, hidden: Tensor) -> Tensor:
        """The final norm: float32 [..., hidden] -> the same."""
        ...

    def prefill(
        self,
        tokens: np.ndarray,
        cache: Any,
        *,
        slots: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        chunk: int = 512,
    ) -> Tensor:
        """Feed tokens [rows, n] to slots; logits of each row's last real token, float32 [rows, vocab].

        A prompt's chunk and single tokens of other sequences can be rows of one call; see `Decoder.forward`.
        """
        ...

    def numpy(self, x: Tensor) -> np.ndarray:
        """What the others return, as numpy."""
        ...

    @property
    def token_bytes(self) -> int:
        """Bytes of matrices, as they lie in memory, that one generated token reads."""
        ...

    @property
    def choices(self) -> CoreChoices | None:
        """What the C++ core chose for this processor; None where it does not run the model."""
        ...
