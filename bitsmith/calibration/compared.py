"""An input of the rounded model beside the same input of the original."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitsmith.calibration.collect import not_finite
from bitsmith.calibration.stats import GramMeter, Stats
from bitsmith.errors import TensorError


@dataclass(frozen=True)
class Compared:
    """Statistics of an input, and its drift from the original model's input.

    name: name of the linear, for errors
    meter: sums the Gram matrix and the drift
    """

    name: str
    meter: GramMeter

    def add(self, x: Tensor, original: Tensor | None) -> None:
        """Add tokens: float32 [..., cols] each."""
        self.meter.piece(x, original)

    def end(self) -> None:
        """A batch of windows is whole."""
        self.meter.end()

    def taken(self) -> tuple[Stats, Tensor | None]:
        """The statistics, and the drift, which nothing else holds then.

        The drift is the sum of (x - x')^T x', [cols, cols]: x original inputs, x' inputs of the rounded block; None
        without x. Raises TensorError, naming the linear, if a value is not finite.
        """
        try:
            return self.meter.taken()
        except TensorError as error:
            raise not_finite(self.name, error) from error
