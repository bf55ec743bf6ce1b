"""Activation-aware weight quantization (Lin et al. 2023): scales up important columns and clips extents.

Factors follow the size of the activations: s = mean|x|^alpha, or with "duo scaling" (from the authors' later code)
s = mean|x|^alpha / mean|w|^(1 - alpha). The search minimises the exact error of the outputs, from the Gram matrix
G = X^T X: sum (x W'^T - x W^T)^2 = tr((W' - W) G (W' - W)^T).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from bitsmith.calibration.stats import Stats
from bitsmith.calibration.transforms.base import Rescaling, lowest, require, settled
from bitsmith.models.arch.groups import LinearGroup
from bitsmith.quant.formats.affine import Affine, extents
from bitsmith.quant.formats.base import Format, NeedsExtent, Params, VectorFormat
from bitsmith.quant.formats.codebook import Codebook
from bitsmith.quant.formats.core_ladder import clipped, scale_search
from bitsmith.quant.formats.search import usable
from bitsmith.quant.grid import Array, Grid
from bitsmith.quant.rounders.core_slab import output_loss
from bitsmith.quant.rounders.nearest import nearest

Round = Callable[[Array, Format, Array | None], tuple[Array, Params]]
_MOST_ROWS = 1024  # rows of a matrix that a search uses, evenly spread
_ROWS_TOGETHER = 256  # rows between two looks at whether a candidate is already worse than the best
_CLIP_RATIOS = tuple(1.0 - 0.025 * step for step in range(21))  # shares of the extent that are tried


@dataclass(frozen=True)
class _Place:
    """A candidate: alpha as a number of steps, and whether duo scaling is used."""

    step: int
    duo: bool


@dataclass(frozen=True)
class Awq:
    """The search for alpha, one group of linears at a time.

    Every second value of alpha is tried, then those beside the best one: the loss is smooth in alpha.

    steps: number of values of alpha, up to 1, for each kind of factor
    round: the rounding whose error is minimised; it gets the importance of the rescaled columns
    """

    steps: int = 20
    round: Round = nearest

    @property
    def needs(self) -> frozenset[str]:
        """See `Transform`. Without the Gram matrix, a sample of rows serves, which is less exact."""
        return frozenset({"gram"})

    def __call__(
        self,
        group: LinearGroup,
        weights: Mapping[str, np.ndarray],
        formats: Mapping[str, Format],
        stats: Stats,
        rows: np.ndarray,
    ) -> Rescaling:
        """See `Transform`. The losses are mean squared errors of the outputs of the searched rows."""
        if stats.gram is None:
            require(stats.sample, "a Gram matrix or a sample", group)
        seen = {name: _some_rows(w) for name, w in weights.items()}
        ones = np.ones(rows.size, np.float32)
        before = self._loss(seen, formats, stats, ones)
        live = stats.mean_abs > 0
        x = np.where(live, stats.mean_abs, 1.0).astype(np.float64)
        w = _mean_share(seen)

        def factors(place: _Place) -> np.ndarray:
            alpha = place.step / self.steps
            return settled(x**alpha / w ** (1.0 - alpha) if place.duo else x**alpha, live, rows)

        def loss(place: _Place, most: float) -> float:
            return self._loss(seen, formats, stats, factors(place), most)

        found = lowest(loss, before, self._coarse, self._beside)
        if found is None:
            return Rescaling(group, ones, before, before, "no rescaling lowers the error")
        best, least = found
        words = f"alpha {best.step / self.steps:.2f}" + (" with weights" if best.duo else "")
        return Rescaling(group, factors(best), before, least, words)

    def _coarse(self) -> Iterator[_Place]:
        """Every second place, those in the middle first, since there the loss is often least."""
        steps = range(self.steps, 0, -2)
        for step in sorted(steps, key=lambda step: abs(2 * step - self.steps)):
            yield _Place(step, duo=False)
            if step < self.steps:
                yield _Place(step, duo=True)

    def _beside(self, best: _Place | None) -> Iterator[_Place]:
        """The places beside the best one; the smallest steps if there is none."""
        if best is None:
            yield from (_Place(1, duo=False), _Place(1, duo=True))
            return
        for step in (best.step - 1, best.step + 1):
            if 0 < step < self.steps + (not best.duo):
                yield _Place(step, best.duo)

    def _loss(
        self,
        weights: Mapping[str, np.ndarray],
        formats: Mapping[str, Format],
        stats: Stats,
        scale: np.ndarray,
        most: float = math.inf,
    ) -> float:
        """The loss with these factors; any number above `most` if it is above."""
        importance = stats.importance / (scale * scale)
        total = 0.0
        for name, w in weights.items():
            if total > most:
                break
            found = self._core_loss(w, formats[name], stats, scale, (most - total) * max(stats.count, 1))
            if found is not None:
                total += found / max(stats.count, 1)
                continue
            format = formats[name]
            if isinstance(format, NeedsExtent):
                scaled = w * scale
                format = format.with_extent(float(scaled.min()), float(scaled.max()))
            total += self._rounded_loss(w, format, stats, scale, importance)
        return total

    def _rounded_loss(
        self, w: np.ndarray, format: Format, stats: Stats, scale: np.ndarray, importance: np.ndarray
    ) -> float:
        """The loss of one matrix whose format the core cannot fit and round at once, for instance K-quants."""
        scaled = w * scale
        if self.round is nearest and stats.gram is not None and not isinstance(format, VectorFormat):
            grid = format.grid(format.fit(scaled, importance))
            assert isinstance(grid, Grid)
            found = output_loss(w, scale, grid, stats.gram, threads=torch.get_num_threads())
            if found is not None:
                return found / max(stats.count, 1)
        codes, params = self.round(scaled, format, importance)
        return output_error(format.grid(params).values(codes) / scale - w, stats)

    def _core_loss(self, w: np.ndarray, format: Format, stats: Stats, scale: np.ndarray, most: float) -> float | None:
        """The loss of one matrix, summed over tokens, by the C++ core; None where it cannot.

        It stops where the sum over the first rows is above `most`.
        """
        search = scale_search(format) if self.round is nearest and stats.gram is not None else None
        if search is None:
            return None
        importance = stats.importance / (scale * scale)
        columns = importance if usable(importance) else None
        rows, factors = np.ascontiguousarray(w, np.float32), np.ascontiguousarray(scale, np.float32)
        gram, total = np.ascontiguousarray(stats.gram), 0.0
        for start in range(0, len(rows), _ROWS_TOGETHER):
            part = rows[start : start + _ROWS_TOGETHER]
            total += search.loss(part, factors, columns, gram, threads=torch.get_num_threads())
            if total > most:
                break
        return total


def output_error(error: np.ndarray, stats: Stats) -> float:
    """Squared error of a matrix's outputs, averaged over tokens. error: float32 [rows, cols], error of the weights.

    Uses the Gram matrix if there is one, else the sample. The sum is float64.
    """
    if stats.gram is not None:
        product = error @ stats.gram
        return float(np.einsum("rc,rc->", product, error, dtype=np.float64)) / max(stats.count, 1)
    out = stats.sample @ error.T
    return float(np.einsum("tr,tr->", out, out, dtype=np.float64)) / max(len(stats.sample), 1)


def fit_clipped(w: np.ndarray, format: Format, stats: Stats) -> Params:
    """Parameters of `format` for `w` float32 [rows, cols], with extents clipped if that lowers the output's error.

    Each group of weights tries ratios from 1 to 0.5 of its extent. It keeps the one with the smallest tr(e G e^T),
    where G is the group's part of the Gram matrix. Formats that search their scales (such as K-quants), groups of
    whole rows, and statistics without a Gram matrix use `Format.fit` with the importance, which clips too.
    """
    block = format.group if isinstance(format, Affine) else format.block if isinstance(format, Codebook) else 0
    if block == 0 or stats.gram is None or not isinstance(format, Affine | Codebook):
        return format.fit(w, stats.importance)
    found = clipped(format, w, stats.gram, _CLIP_RATIOS, threads=torch.get_num_threads())
    return _clipped(w, format, stats.gram, block) if found is None else found


def _clipped(w: np.ndarray, format: Affine | Codebook, gram: np.ndarray, block: int) -> Params:
    """`fit_clipped` without the core: the definition."""
    blocks = w.shape[1] // block
    diagonal = gram.reshape(blocks, block, blocks, block)[np.arange(blocks), :, np.arange(blocks), :]
    low, high = extents(w, block)
    best: dict[str, np.ndarray] = {}
    least: np.ndarray | None = None
    for ratio in _CLIP_RATIOS:
        params = format.from_extent(low * ratio, high * ratio)
        if isinstance(format, Affine) and ratio != 1.0:
            params = format.turned(params, low, high)
        grid = format.grid(params)
        error = (grid.values(grid.nearest(w)) - w).reshape(-1, blocks, block).transpose(1, 0, 2)
        loss = np.einsum("brc,brc->rb", error @ diagonal, error, dtype=np.float64)
        if least is None:
            best, least = dict(params), loss
            continue
        better = loss < least
        least = np.where(better, loss, least)
        best = {name: np.where(better, params[name], kept) for name, kept in best.items()}
    return best


def _some_rows(w: np.ndarray) -> np.ndarray:
    """At most _MOST_ROWS rows, evenly spread."""
    return w[:: -(-w.shape[0] // _MOST_ROWS)]


def _mean_share(weights: Mapping[str, np.ndarray], group: int = 128) -> np.ndarray:
    """Mean size of each column's weights, as a share of the largest in their group: [cols] float64, > 0."""
    shares = []
    for w in weights.values():
        rows, cols = w.shape
        size = group if cols % group == 0 else cols
        blocks = np.abs(w).reshape(rows, cols // size, size)
        largest = blocks.max(axis=2, keepdims=True)
        shares.append((blocks / np.where(largest > 0, largest, 1.0)).reshape(rows, cols))
    mean: np.ndarray = np.concatenate(shares).mean(axis=0, dtype=np.float64)
    return mean + 1e-4
