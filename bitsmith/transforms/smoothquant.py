"""SmoothQuant (Xiao et al. 2022): the difficulty of activations moved into the weights, for products of 8 bits.

Activations are divided by s = max|x|^alpha / max|w|^(1 - alpha), the columns of the weights multiplied by it; alpha is
searched by rounding both and comparing the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from bitsmith.arch.groups import LinearGroup
from bitsmith.formats import get_format
from bitsmith.formats.base import Format, NeedsExtent
from bitsmith.rounders.nearest import nearest
from bitsmith.stats import Stats
from bitsmith.transforms.base import Rescaling, require, settled


@dataclass(frozen=True)
class SmoothQuant:
    """The search for alpha, a group of linears at a time.

    steps: values of alpha tried from 0 to 1, their ends included
    activations: the format of a row of activations: "int8-channel" and "fp8" scale by token, "int8-tensor" and
        "fp8-tensor" by the extent that calibration saw
    """

    steps: int = 21
    activations: Format = field(default_factory=lambda: get_format("int8-channel"))

    @property
    def needs(self) -> frozenset[str]:
        """See `Transform`."""
        return frozenset({"sample"})

    def __call__(
        self,
        group: LinearGroup,
        weights: Mapping[str, np.ndarray],
        formats: Mapping[str, Format],
        stats: Stats,
        rows: np.ndarray,
    ) -> Rescaling:
        """See `Transform`. The losses are mean squared errors of the outputs on the sample, a token."""
        require(stats.sample, "sample", group)
        ones = np.ones(rows.size, np.float32)
        before = self._loss(weights, formats, stats, ones)
        best, least, how = ones, before, "no rescaling does better"
        w = np.max([np.abs(each).max(axis=0) for each in weights.values()], axis=0).astype(np.float64)
        x = stats.max_abs.astype(np.float64)
        live = (x > 0) & (w > 0)
        x, w = np.where(live, x, 1.0), np.where(live, w, 1.0)
        for step in range(self.steps):
            alpha = step / (self.steps - 1)
            candidate = settled(x**alpha / w ** (1.0 - alpha), live, rows)
            loss = self._loss(weights, formats, stats, candidate)
            if loss < least:
                best, least, how = candidate, loss, f"alpha {alpha:.2f}"
        return Rescaling(group, best, before, least, how)

    def _loss(
        self, weights: Mapping[str, np.ndarray], formats: Mapping[str, Format], stats: Stats, scale: np.ndarray
    ) -> float:
        rounded = rounded_activations(stats.sample / scale, self.activations, float((stats.max_abs / scale).max()))
        total = 0.0
        for name, w in weights.items():
            codes, params = nearest(w * scale, formats[name], stats.importance / (scale * scale))
            error = rounded @ formats[name].grid(params).values(codes).T - stats.sample @ w.T
            total += float(np.einsum("tr,tr->", error, error, dtype=np.float64))
        return total / len(stats.sample)


def rounded_activations(x: np.ndarray, format: Format, largest: float) -> np.ndarray:
    """What activations become as numbers of `format`: float32 [tokens, cols] -> the same.

    largest: greatest absolute value seen in calibration; only formats with one scale a tensor use it
    """
    if isinstance(format, NeedsExtent):
        format = format.with_extent(-largest, largest)
    codes, params = nearest(x, format)
    return np.asarray(format.grid(params).values(codes))
