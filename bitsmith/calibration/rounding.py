"""Rounds one matrix, given the statistics of its input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from bitsmith.calibration.accelerator import accelerated_rows, on_accelerator, release
from bitsmith.calibration.drift import Drift
from bitsmith.calibration.input_hessian import InputHessian
from bitsmith.calibration.stats import Stats
from bitsmith.calibration.transforms.awq import fit_clipped
from bitsmith.errors import TensorError
from bitsmith.quant.formats.base import Format, NeedsExtent, Params, Settled, SharesExtent, VectorFormat
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.lattice import probe, probed_rows, recover
from bitsmith.quant.rounders.effort import Effort
from bitsmith.quant.rounders.gptq import EVEN_ROWS, GptqReport, Rounded, gptq_each, joined
from bitsmith.quant.rounders.slabs import SLAB_ROWS, WIDE, slab_rows
from bitsmith.quant.tensor import QuantTensor
from bitsmith.system.memory import trim_memory
from bitsmith.system.pressure import is_shortage


@dataclass(frozen=True)
class RoundingReport:
    """The report on rounding a matrix.

    gptq: None if the codes are the nearest
    recovered: whether all rows lay on the format's grid, and are kept exactly
    cut: whether memory ran short, so that fewer rows than usual were rounded at a time
    moved: whether an accelerator had no memory for the Hessian, so that the CPU did the work
    """

    gptq: GptqReport | None = None
    recovered: bool = False
    cut: bool = False
    moved: bool = False

    @classmethod
    def joined(cls, parts: Iterable[RoundingReport]) -> RoundingReport:
        """The report on all rows, from the reports on slabs of rows."""
        every = tuple(parts)
        found = [part.gptq for part in every if part.gptq is not None]
        whole = all(part.recovered for part in every)
        cut, moved = any(part.cut for part in every), any(part.moved for part in every)
        return cls(joined(found) if found else None, whole, cut, moved)


def plain_nearest(weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
    """Nearest codes, for a matrix whose input is unknown."""
    w = as_numpy(weight)
    format = _with_extent(format, w)
    slabs = []
    for start in range(0, len(w), SLAB_ROWS):
        slabs.append(_nearest(w[start : start + SLAB_ROWS], format, None))
    return _whole(format, slabs), RoundingReport()


def _nearest(rows: np.ndarray, format: Format, stats: Stats | None) -> tuple[np.ndarray, Params]:
    """The nearest codes, and parameters for them; statistics weight the columns."""
    if isinstance(format, VectorFormat):
        return format.nearest(rows, None if stats is None else stats.importance)
    params = format.fit(rows, None) if stats is None else fit_clipped(rows, format, stats)
    codes: np.ndarray = format.grid(params).nearest(rows)
    return codes, params


def _on_grid(weight: Tensor, format: Format) -> bool:
    """Whether some rows of a matrix lie on the format's grid already."""
    return bool(probe(as_numpy(weight[list(probed_rows(len(weight)))]), format))


def on_grid(rounder: LinearRounder) -> LinearRounder:
    """A rounder that keeps rows which lie on the format's grid already, see `quant.lattice`."""

    def round(weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
        if not _on_grid(weight, format):
            return rounder(weight, format)
        w = as_numpy(weight)
        kept, found = recover(w, format)
        if found.all():
            return kept, RoundingReport(recovered=True)
        tensor, said = rounder(weight, format)
        params = {name: values.copy() for name, values in tensor.params.items()}
        codes = tensor.codes.copy()
        codes[found] = kept.codes[found]
        for name, values in kept.params.items():
            params[name][found] = values[found]
        return QuantTensor(format, codes, params), said

    return round


LinearRounder = Callable[[Tensor, Format], tuple[QuantTensor, RoundingReport]]  # the weight: float32 [rows, cols]


def clipped_nearest(stats: Stats) -> LinearRounder:
    """Nearest codes with scales that lower the error of the outputs, see `fit_clipped`."""
    stats = replace(stats, gram=as_numpy(stats.gram))

    def round(weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
        w = as_numpy(weight)
        format = _with_extent(format, w)
        slabs = []
        for start in range(0, len(w), SLAB_ROWS):
            slabs.append(_nearest(w[start : start + SLAB_ROWS], format, stats))
        return _whole(format, slabs), RoundingReport()

    return round


def gptq_rounder(stats: Stats, drift: Drift | None, effort: Effort) -> GptqRounder:
    """GPTQ with the Hessian of the statistics, which is factored once. It takes their Gram matrix and the drift over.

    drift: how far the inputs in `stats` have moved from the original model's; weights are first corrected for it, as
        far as the halves of the tokens agree, see `correction` and `Drift.share`
    """
    assert stats.gram is not None
    return GptqRounder(InputHessian.of(stats.gram, drift, max(stats.count, 1), stats.damping), effort.sweeps)


@dataclass(frozen=True)
class GptqRounder:
    """Rounds matrices that share an input by GPTQ: a `LinearRounder`, and on an accelerator several at once.

    hessian: of the input
    sweeps: rounds of coordinate descent
    product: of the one weight that is rounded and the drift, see `InputHessian.corrected`; None if it is not known yet
    """

    hessian: InputHessian
    sweeps: int
    product: Tensor | None = None

    def __call__(self, weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
        """Round a matrix, float32 [rows, cols]."""
        return self.together([weight], format)[0]

    @property
    def accelerated(self) -> bool:
        """Whether rows are rounded on an accelerator."""
        return on_accelerator(self.hessian.matrix)

    def each(self, weights: Mapping[str, Tensor]) -> dict[str, GptqRounder]:
        """A rounder for each of all weights that are rounded with this Hessian, by name."""
        products = self.hessian.products(weights)
        return {name: replace(self, product=products.pop(name, None)) for name in weights}

    def together(self, weights: Sequence[Tensor], format: Format) -> list[tuple[QuantTensor, RoundingReport]]:
        """Round matrices, float32 [rows, cols] each, in slabs of rows of all of them; on the CPU if all else fails."""
        try:
            return self._together(weights, format)
        except (MemoryError, RuntimeError) as error:
            if not self.accelerated or not is_shortage(error):
                raise
        release(self.hessian.matrix.device)
        return self._on_host.together([weight.cpu() for weight in weights], format)

    def _together(self, weights: Sequence[Tensor], format: Format) -> list[tuple[QuantTensor, RoundingReport]]:
        hessian = self.hessian
        weights = [hessian.corrected(weight.to(hessian.matrix.device), self.product) for weight in weights]
        format = _with_extent(format, weights[0])
        own = hessian.by_vectors if isinstance(format, VectorFormat) else hessian.factor
        pieces = [list[Rounded]() for _ in weights]
        step = accelerated_rows(own) if self.accelerated else slab_rows(own.cols)
        cut = False
        for slab in slabs_of([len(weight) for weight in weights], step, apart=not self.accelerated):

            def make(parts: Sequence[Tensor]) -> list[Rounded]:
                return gptq_each(parts, format, own, sweeps=self.sweeps)

            for place, halves in zip(slab, _in_slabs([weights[i][at] for i, at in slab], make), strict=True):
                pieces[place[0]] += halves
                cut |= len(halves) > 1
            if own.cols >= WIDE and not self.accelerated:
                trim_memory()
        return [
            (
                _whole(format, [(piece.codes, piece.params) for piece in each]),
                RoundingReport(joined(piece.report for piece in each), cut=cut, moved=hessian.moved),
            )
            for each in pieces
        ]

    @property
    def _on_host(self) -> GptqRounder:
        return GptqRounder(self.hessian.on_host, self.sweeps)


def slabs_of(counts: Sequence[int], step: int, *, apart: bool) -> Iterator[list[tuple[int, slice]]]:
    """Rows of matrices that are rounded together, at most `step`: (number of the matrix, its rows) each.

    counts: rows of the matrices. apart: whether a slab has rows of one matrix alone
    """
    slab, room = list[tuple[int, slice]](), step
    for i, count in enumerate(counts):
        start = 0
        while start < count:
            stop = min(start + room, count)
            slab.append((i, slice(start, stop)))
            room -= stop - start
            start = stop
            if not room:
                yield slab
                slab, room = [], step
        if apart and slab:
            yield slab
            slab, room = [], step
    if slab:
        yield slab


def _in_slabs(parts: Sequence[Tensor], make: Callable[[Sequence[Tensor]], list[Rounded]]) -> list[list[Rounded]]:
    """Rows rounded at once; where memory does not suffice, one half after the other, to the same codes."""
    count = max(len(rows) for rows in parts)
    try:
        return [[each] for each in make(parts)]
    except (MemoryError, RuntimeError) as error:
        if (count <= EVEN_ROWS and len(parts) == 1) or not is_shortage(error):
            raise
    release(parts[0].device)
    if len(parts) > 1:
        middle = len(parts) // 2
        return [*_in_slabs(parts[:middle], make), *_in_slabs(parts[middle:], make)]
    rows = parts[0]
    middle = -(-count // 2 // EVEN_ROWS) * EVEN_ROWS if count > 2 * EVEN_ROWS else EVEN_ROWS
    halves = (*_in_slabs([rows[:middle]], make), *_in_slabs([rows[middle:]], make))
    return [[each for half in halves for each in half]]


def rounded_group(
    rounder: LinearRounder, prefix: str, matrices: Mapping[str, tuple[Tensor, Format]]
) -> dict[str, tuple[QuantTensor, RoundingReport]]:
    """Round the matrices of a group, float32 [rows, cols] each, by name; on an accelerator those of a format together.

    prefix: of the names in errors, "blk.0."
    Raises TensorError that names the linear.
    """
    found: dict[str, tuple[QuantTensor, RoundingReport]] = {}
    if isinstance(rounder, GptqRounder) and rounder.accelerated:
        alike: dict[Format, list[str]] = {}
        for name, (weight, format) in matrices.items():
            if not isinstance(format, NeedsExtent) and not _on_grid(weight, format):
                alike.setdefault(format, []).append(name)
        for format, names in alike.items():
            try:
                made = rounder.together([matrices[name][0] for name in names], format)
            except TensorError as error:
                raise TensorError(error.message, tensor=prefix + names[0]) from error
            found |= zip(names, made, strict=True)
    rest = {name: given for name, given in matrices.items() if name not in found}
    rounders = dict.fromkeys(rest, rounder)
    if isinstance(rounder, GptqRounder) and not any(_on_grid(*given) for given in rest.values()):
        rounders = dict[str, LinearRounder](rounder.each({name: weight for name, (weight, _) in rest.items()}))
    return found | {name: round_named(rounders.pop(name), prefix + name, *given) for name, given in rest.items()}


def round_named(
    rounder: LinearRounder, name: str, weight: Tensor, format: Format
) -> tuple[QuantTensor, RoundingReport]:
    """Round a matrix, or some of its rows. Errors name the linear."""
    try:
        return on_grid(rounder)(weight, format)
    except TensorError as error:
        raise TensorError(error.message, tensor=name) from error


def with_shared_extent(matrices: Mapping[str, tuple[Tensor, Format]]) -> dict[str, Format]:
    """The formats of matrices that share an input. Those with one scale for all of them get the extent of all.

    matrices: the weight, float32 [rows, cols], and the format of each by name
    """
    alike: dict[str, list[Tensor]] = {}
    for weight, format in matrices.values():
        if isinstance(format, SharesExtent) and format.shares_extent:
            alike.setdefault(format.name, []).append(weight)
    extents = {
        name: (min(float(w.min()) for w in weights), max(float(w.max()) for w in weights))
        for name, weights in alike.items()
    }
    return {
        name: format.with_extent(*extents[format.name])
        if isinstance(format, SharesExtent) and format.name in extents
        else format
        for name, (_, format) in matrices.items()
    }


def _with_extent(format: Format, w: Tensor | np.ndarray) -> Format:
    """The format, with the extent of the matrix if it needs one and has none yet."""
    if isinstance(format, SharesExtent) and format.low is not None:
        return format  # that of all matrices which share a scale
    return format.with_extent(float(w.min()), float(w.max())) if isinstance(format, NeedsExtent) else format


def _whole(format: Format, slabs: Sequence[tuple[Tensor | np.ndarray, Params]]) -> QuantTensor:
    """Join the codes and parameters of slabs of rows to one tensor of numpy arrays."""
    params = {name: np.concatenate([as_numpy(slab[name]) for _, slab in slabs]) for name in slabs[0][1]}
    if isinstance(format, Settled):
        params = format.settled(params)
    return QuantTensor(format, np.concatenate([as_numpy(codes) for codes, _ in slabs]), params)
