"""The Hessian of a linear's input, factored when it is first needed, and what its drift does to weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bitsmith.calibration.accelerator import on_accelerator, release
from bitsmith.calibration.drift import Drift, Split
from bitsmith.quant.rounders.hessian import (
    Factor,
    corrected,
    corrected_directly,
    correction,
    drifted,
    prepare,
    solve_in_place,
)
from bitsmith.quant.rounders.slabs import WIDE
from bitsmith.system.memory import trim_memory
from bitsmith.system.pressure import is_shortage


@dataclass
class InputHessian:
    """Of the input that some linears share. It is made of sums in their place.

    matrix: mean of x^T x, float32 [cols, cols]
    damping: of its factor
    drift: mean of (x0 - x)^T x, [cols, cols], where x0 are the original model's inputs; None if weights are not
        corrected for it, or no longer
    split: of the drift, which says how much of it counts; None: all
    moved: whether an accelerator had no memory for this, so that the CPU does it
    """

    matrix: Tensor
    damping: float
    drift: Tensor | None
    split: Split | None = None
    moved: bool = False

    @classmethod
    def of(cls, gram: Tensor, drift: Drift | None, count: int, damping: float) -> InputHessian:
        """From sums over `count` tokens, which become means in place. On an accelerator it is factored at once."""
        split = None if drift is None else drift.split(count)
        made = cls(gram.div_(count), damping, None if drift is None else drift.total.div_(count), split)
        if not on_accelerator(gram):
            return made
        try:
            _ = made.factor
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
        else:
            return made
        release(gram.device)
        return made.on_host

    @cached_property
    def on_host(self) -> InputHessian:
        """The same in the host's memory."""
        drift = None if self.drift is None else self.drift.cpu()
        split = None if self.split is None else self.split.cpu()
        found = InputHessian(self.matrix.cpu(), self.damping, drift, split, moved=True)
        if (own := self.__dict__.get("factor")) is not None:
            found.__dict__["factor"] = replace(
                own,
                hessian=found.matrix,
                feedback=own.feedback.cpu(),
                pivots=own.pivots.cpu(),
                order=own.order.cpu(),
                added=own.added.cpu(),
            )
        return found

    @cached_property
    def factor(self) -> Factor:
        """The factored Hessian."""
        return prepare(self.matrix, damping=self.damping)

    @cached_property
    def by_vectors(self) -> Factor:
        """The Hessian, factored for codes of vectors."""
        return prepare(self.matrix, order="vectors", damping=self.damping)

    @cached_property
    def share(self) -> float:
        """How much of the correction counts, see `Split.share`."""
        return 1.0 if self.split is None else self.split.share(self.factor)

    @cached_property
    def _moves(self) -> Tensor:
        assert self.drift is not None
        found = solve_in_place(self.factor, self.drift.clone()) if self._wide else correction(self.factor, self.drift)
        return found.mul_(self.share)

    @property
    def _wide(self) -> bool:
        return len(self.matrix) >= WIDE and not on_accelerator(self.matrix)

    def products(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The products of all weights that are corrected with the drift, by name; see `corrected`.

        The drift is let go then, so that the Hessian is factored without it. Empty where this saves no memory.
        """
        if self.drift is None or not self._wide or any(len(each) > each.shape[1] for each in weights.values()):
            return {}
        found = {name: drifted(each, self.drift) for name, each in weights.items()}
        self.drift = None
        trim_memory()
        return found

    def corrected(self, weight: Tensor, product: Tensor | None = None) -> Tensor:
        """The weight, float32 [rows, cols], corrected for the drift, see `correction`.

        product: of the weight and the drift, see `drifted`, if it is known already; it is overwritten
        """
        few = weight.shape[0] <= weight.shape[1]
        if product is None and self._wide and few and self.drift is not None:
            product = drifted(weight, self.drift)
        if product is not None:
            return solve_in_place(self.factor, product).mul_(self.share).add_(weight)
        if self.drift is None:
            return weight
        if on_accelerator(self.matrix) and few:  # without a matrix of the Hessian's size
            return torch.lerp(weight, corrected_directly(weight, self.factor, self.drift), self.share)
        found: Tensor = corrected(weight, self._moves)
        return found
