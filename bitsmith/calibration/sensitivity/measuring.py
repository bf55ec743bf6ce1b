"""Measures what the types of units cost: the pass around the original, passes around chosen types, true divergences."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.resources import Resources
from bitsmith.calibration.sensitivity.divergence import Divergence
from bitsmith.calibration.sensitivity.fisher import cost, fisher
from bitsmith.calibration.sensitivity.footprint import LEAST_ROWS, row_share
from bitsmith.calibration.sensitivity.joining import joined
from bitsmith.calibration.sensitivity.watched import EMBEDDING, HEAD, WatchedModel
from bitsmith.calibration.work import places_of
from bitsmith.errors import UnsupportedError
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.recipe.allocation.units import Choice, Unit, linear_of
from bitsmith.recipe.plan import PlannedTensor
from bitsmith.runtime.torch.products import fast_products
from bitsmith.system.machine import cores
from bitsmith.system.progress import Progress, Report, silent


class Rounding(Protocol):
    """How matrices are rounded.

    gains: how much less the codes of the run cost than those of a call; None: they are the same
    """

    @property
    def gains(self) -> Gains | None: ...

    def __call__(self, name: str, w: np.ndarray, planned: PlannedTensor) -> np.ndarray:
        """A matrix float32 [rows, cols], by name, as the file of `planned` would hold it, decoded."""
        ...


class Gains(Protocol):
    """See `calibrated.GptqGains`."""

    def of(self, name: str, w: np.ndarray, tensors: tuple[PlannedTensor, ...]) -> np.ndarray:
        """float64 [types], factors of the cost of a matrix in each of its types."""
        ...


_EVERY = 2  # one window of so many for the gradient around chosen types: a slope is less noisy than a second order


@dataclass(frozen=True)
class Texts:
    """Windows of one text that share no token. measured_on: those that neither calibration nor a later test sees

    calibration, measured_on: int64 [windows, n]
    """

    calibration: np.ndarray
    measured_on: np.ndarray


@dataclass(frozen=True)
class _Matrix:
    """A matrix of the decoder. unit: its number; tensors: how it is stored in each choice of the unit"""

    name: str
    unit: int
    tensors: tuple[PlannedTensor, ...]


class Measuring:
    """Measurements on one model, loaded in float32 when the first is asked for.

    units: those with a choice, then those whose type is given; what the decoder does not multiply with is left out of
        the latter
    refines: whether `changes` and `divergence` hold for the codes of the run; those of GPTQ are not chosen here
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        units: Sequence[Unit],
        texts: Texts,
        rounding: Rounding,
        resources: Resources,
        report: Report = silent,
    ) -> None:
        self._checkpoint, self._units, self._texts = checkpoint, units, texts
        self._rounding, self._resources, self._report = rounding, resources, report
        self.refines = rounding.gains is None
        self._hidden: Tensor | None = None  # the original's, of every `_EVERY`th window

    @cached_property
    def model(self) -> WatchedModel:
        """The original."""
        if self._resources.threads is not None:
            torch.set_num_threads(self._resources.threads)
        return WatchedModel(self._checkpoint, device=self._resources.device, report=self._report)

    @cached_property
    def _matrices(self) -> list[_Matrix]:
        found = []
        for number, unit in enumerate(self._units):
            by_name: dict[str, list[PlannedTensor]] = {}
            for choice in unit.choices:
                for tensor in choice.tensors:
                    for name in _matrices_of(tensor, self.model.matrices.keys()):
                        by_name.setdefault(name, []).append(tensor)
            if not by_name and len(unit.choices) > 1:
                raise UnsupportedError(f"{unit.names[0]}: the decoder has no such matrix, so its cost is not known.")
            found += [_Matrix(name, number, tuple(tensors)) for name, tensors in by_name.items()]
        return found

    def costs(self) -> list[np.ndarray]:
        """Expected divergence of each choice of each unit alone, nats a token: float64 [choices] each."""
        errors, tokens, gains = self._errors, self._texts.calibration, self._rounding.gains
        with fast_products(self._resources.device):
            passed = fisher(self.model, self._stacked(errors), tokens, report=self._report)
        self._hidden, seen = passed.hidden[::_EVERY].clone(), passed.seen
        measured = []
        for matrix in self._matrices:
            kept = errors[matrix.name]
            whole = kept.values if kept.whole else self._all_errors(matrix)
            measured.append(cost(seen[matrix.name], kept.values, tokens.size, whole=whole, rows=kept.rows))
        types = [[tensor.info.layout for tensor in matrix.tensors] for matrix in self._matrices]
        found = [np.zeros(len(unit.choices)) for unit in self._units]
        alone = [matrix.name in (EMBEDDING, HEAD) for matrix in self._matrices]
        for matrix, own in zip(self._matrices, joined(measured, types, alone), strict=True):
            found[matrix.unit] += (
                own if gains is None else own * gains.of(matrix.name, self._own(matrix), matrix.tensors)
            )
        return found

    def changes(self, chosen: Sequence[int], costs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """How the divergence changes with each choice of a unit, if the others are as chosen: float64 [choices] each.

        The first order is the true gradient at the chosen types, so that it holds what rounded matrices do to each
        other; the second order is that of `costs`. The choice that is made has 0.
        """
        errors = self._errors
        with fast_products(self._resources.device):
            measure = Divergence(self.model, self._texts.calibration[::_EVERY], self._hidden)
            slopes = measure.gradient(self._values(chosen), self._stacked(errors), self._report)
        found = [np.zeros(len(unit.choices)) for unit in self._units]
        for matrix in self._matrices:
            slope = slopes[matrix.name] / errors[matrix.name].share
            found[matrix.unit] += slope - slope[chosen[matrix.unit]]
        for number, (at, own) in enumerate(zip(chosen, costs, strict=True)):
            found[number] += own + own[at]
            found[number][at] = 0.0
        return found

    def divergence(self, chosen: Sequence[int]) -> float:
        """The true divergence of chosen types, nats a token, on the text that is kept for it."""
        self._report(Progress("measure", 0, 1, "passes"))
        with fast_products(self._resources.device):
            found = self._measured_on.of(self._values(chosen))
        self._report(Progress("measure", 1, 1, "passes"))
        return found

    @cached_property
    def _measured_on(self) -> Divergence:
        return Divergence(self.model, self._texts.measured_on)

    def _values(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """The rounded matrices of chosen types, by name."""

        def values(matrix: _Matrix) -> Tensor:
            own = self.model.matrices[matrix.name]
            return torch.from_numpy(self._round(matrix, own, matrix.tensors[chosen[matrix.unit]])).to(own.device)

        with ThreadPoolExecutor(self._resources.threads or cores()) as pool:
            found = list(pool.map(values, self._matrices))
        return {matrix.name: each for matrix, each in zip(self._matrices, found, strict=True)}

    def _round(self, matrix: _Matrix, own: Tensor, planned: PlannedTensor) -> np.ndarray:
        return self._rounding(matrix.name, own.cpu().numpy(), planned)

    def _own(self, matrix: _Matrix) -> np.ndarray:
        return np.asarray(self.model.matrices[matrix.name].cpu().numpy())

    def _all_errors(self, matrix: _Matrix) -> Iterator[Tensor]:
        """The rounding error of each choice: float32 [rows, cols]."""
        own = self.model.matrices[matrix.name]
        for planned in matrix.tensors:
            yield torch.from_numpy(self._round(matrix, own, planned)).to(own.device) - own

    @cached_property
    def _errors(self) -> dict[str, _Errors]:
        """The rounding errors of all choices of all matrices; of some rows, if they would not fit into memory."""
        numbers = sum(len(matrix.tensors) * self.model.matrices[matrix.name].numel() for matrix in self._matrices)
        total = self.model.gradients.itemsize * numbers
        share = row_share(total, self._resources.memory)
        done = 0

        def errors(matrix: _Matrix) -> _Errors:
            nonlocal done
            count = self.model.matrices[matrix.name].shape[0]
            wanted = count if share == 1.0 else min(count, max(LEAST_ROWS, round(share * count)))
            rows = torch.from_numpy(np.linspace(0, count - 1, wanted).round().astype(np.int64))
            held = [each[rows].to(self.model.gradients) for each in self._all_errors(matrix)]
            found = _Errors(torch.stack(held), rows, wanted / count)
            done += 1
            self._report(Progress("round", done, len(self._matrices), "matrices", matrix.name))
            return found

        with ThreadPoolExecutor(self._resources.threads or cores()) as pool:
            found = list(pool.map(errors, self._matrices))
        return {matrix.name: each for matrix, each in zip(self._matrices, found, strict=True)}

    @staticmethod
    def _stacked(errors: Mapping[str, _Errors]) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (each.values, each.rows) for name, each in errors.items()}


@dataclass(frozen=True)
class _Errors:
    """Rounding errors of one matrix.

    values: [choices, rows that are held, cols], in the dtype of the model's gradients
    rows: int64, their numbers; share: of all rows
    """

    values: Tensor
    rows: Tensor
    share: float

    @property
    def whole(self) -> bool:
        return self.share == 1.0


def _matrices_of(tensor: PlannedTensor, known: Collection[str]) -> list[str]:
    """The decoder's names of what a tensor holds: one matrix, or the experts of a stack."""
    names = [linear_of(tensor), *(name.removesuffix(".weight") for name in places_of((tensor,)))]
    return [name for name in dict.fromkeys(names) if name in known]


def chosen_of(units: Sequence[Unit], chosen: Sequence[int]) -> list[Choice]:
    """The choices by their numbers."""
    return [unit.choices[at] for unit, at in zip(units, chosen, strict=True)]
