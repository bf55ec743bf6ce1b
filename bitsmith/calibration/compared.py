"""An input of the rounded model beside the same input of the original."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitsmith.calibration.collect import not_finite
from bitsmith.calibration.drift import Drift, HalfMeter
from bitsmith.calibration.stats import GramMeter, Stats
from bitsmith.errors import TensorError
from bitsmith.models.arch.operations.base import LinearGroup
from bitsmith.runtime.weights import Block


@dataclass(frozen=True)
class Compared:
    """Statistics of an input, and its drift from the original model's input.

    name: name of the linear, for errors
    meter: sums the Gram matrix and the drift
    half: sums the drift of half of the tokens
    """

    name: str
    meter: GramMeter
    half: HalfMeter

    @classmethod
    def of(cls, layer: int, group: LinearGroup, block: Block, *, rounded: bool) -> Compared:
        """Nothing is summed yet. block: has the group's matrices, as in the original; rounded: see `GramSum`"""
        half = HalfMeter.of([block.linears[name].prepared for name in group.linears])
        return cls(f"blk.{layer}.{group.linears[0]}", GramMeter(rounded=rounded), half)

    def add(self, x: Tensor, original: Tensor | None) -> None:
        """Add tokens: float32 [..., cols] each; with `original` in windows, [..., n, cols]."""
        self.meter.piece(x, original)
        if original is not None:
            self.half.add(x, original)

    def end(self) -> None:
        """A batch of windows is whole."""
        self.meter.end()

    @property
    def stats(self) -> Stats:
        """Raises TensorError, naming the linear, if a value is not finite."""
        try:
            return self.meter.result()
        except TensorError as error:
            raise not_finite(self.name, error) from error

    @property
    def drift(self) -> Drift | None:
        """How far the inputs have moved; None without those of the original model."""
        total: Tensor | None = self.meter.drift
        return None if total is None else Drift(total, self.half.result())
