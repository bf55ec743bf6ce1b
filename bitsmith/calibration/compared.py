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

    def taken(self) -> tuple[Stats, Drift | None]:
        """The statistics, and how far the inputs have moved, which nothing else holds then.

        The latter is None without inputs of the original model. Raises TensorError, naming the linear, if a value is
        not finite.
        """
        try:
            stats, total = self.meter.taken()
        except TensorError as error:
            raise not_finite(self.name, error) from error
        return stats, None if total is None else Drift(total, self.half.result())
