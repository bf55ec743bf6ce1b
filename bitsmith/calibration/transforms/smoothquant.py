"""SmoothQuant (Xiao et al. 2022): moves large activations into the weights, for 8-bit matrix products.

Activations are divided by s = max|x|^alpha / max|w|^(1 - alpha), and the columns of the weights are multiplied by s.
The search rounds both for several values of alpha and compares the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from bitsmith.calibration.stats import Stats
from bitsmith.calibration.transforms.base import Rescaling, lowest, require, settled
from bitsmith.models.arch.groups import LinearGroup
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.core_ladder import rounded_values
from bitsmith.quant.formats.search import usable
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.rounders.nearest import nearest


@dataclass(frozen=True)
class SmoothQuant:
    """The search for alpha, one group of linears at a time: every second value, then those beside the best one.

    steps: number of values of alpha, from 0 to 1 inclusive
    inputs: how the input of each linear is rounded, by the linear's name within its block; the inputs of others are
        not. With scope "tensor", the scale comes from the largest input seen
    """

    inputs: Mapping[str, InputRounding]
    steps: int = 21

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
        """See `Transform`. The losses are squared errors of the outputs, averaged over the sample's tokens."""
        require(stats.sample, "a sample", group)
        if not any(name in self.inputs for name in weights):
            return Rescaling.none(group, rows.size, "its inputs are not rounded")
        ones = np.ones(rows.size, np.float32)
        seen = _Seen(weights, formats, stats, {name: stats.sample @ w.T for name, w in weights.items()})
        before = self._loss(seen, ones)
        w = np.max([np.abs(each).max(axis=0) for each in weights.values()], axis=0).astype(np.float64)
        x = stats.max_abs.astype(np.float64)
        live = (x > 0) & (w > 0)
        x, w = np.where(live, x, 1.0), np.where(live, w, 1.0)

        def factors(step: int) -> np.ndarray:
            alpha = step / (self.steps - 1)
            return settled(x**alpha / w ** (1.0 - alpha), live, rows)

        def coarse() -> list[int]:  # those in the middle first, since there the loss is often least
            return sorted(range(0, self.steps, 2), key=lambda step: abs(2 * step - self.steps + 1))

        def beside(best: int | None) -> list[int]:
            return [] if best is None else [step for step in (best - 1, best + 1) if 0 <= step < self.steps]

        found = lowest(lambda step, most: self._loss(seen, factors(step), most), before, coarse, beside)
        if found is None:
            return Rescaling(group, ones, before, before, "no rescaling lowers the error")
        best, least = found
        return Rescaling(group, factors(best), before, least, f"alpha {best / (self.steps - 1):.2f}")

    def _loss(self, group: _Seen, scale: np.ndarray, most: float = math.inf) -> float:
        """The loss with these factors; any number above `most` if it is above."""
        stats, weights = group.stats, group.weights
        scaled = stats.sample / scale
        roundings = {name: self.inputs.get(name) for name in weights}
        seen: dict[InputRounding | None, np.ndarray] = {None: scaled}  # linears of a group may round alike
        for rounding in set(roundings.values()) - {None}:
            assert rounding is not None
            seen[rounding] = with_absmax(rounding, stats.max_abs / scale).rounded(scaled)
        total = 0.0
        for name, w in weights.items():
            if total > most * len(stats.sample):
                break
            rounded = seen[roundings[name]]
            error = rounded @ _values(w * scale, group.formats[name], stats.importance / (scale * scale)).T
            error -= group.outputs[name]
            total += float(np.einsum("tr,tr->", error, error, dtype=np.float64))
        return total / len(stats.sample)


@dataclass(frozen=True)
class _Seen:
    """What a search reads: matrices, their formats, the statistics of their input, and the sample's outputs."""

    weights: Mapping[str, np.ndarray]
    formats: Mapping[str, Format]
    stats: Stats
    outputs: Mapping[str, np.ndarray]


def _values(w: np.ndarray, format: Format, importance: np.ndarray) -> np.ndarray:
    """The values of the nearest codes, float32 [rows, cols]."""
    threads = torch.get_num_threads()
    found = rounded_values(format, w, importance, threads=threads) if usable(importance) else None
    if found is not None:
        return found
    codes, params = nearest(w, format, importance)
    return np.asarray(format.grid(params).values(codes))


def with_absmax(input_rounding: InputRounding, largest: np.ndarray) -> InputRounding:
    """The same with its scale set, if all inputs share one. largest: [cols] float32, largest |x| in calibration."""
    if input_rounding.scope != "tensor":
        return input_rounding
    return replace(input_rounding, scale=float(input_rounding.scale_of(largest.max(initial=0, keepdims=True))[0]))
