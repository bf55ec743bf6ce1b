"""Meters of gradients: products with rounding errors, and squares by row and column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.sensitivity.footprint import HELD
from bitsmith.calibration.sensitivity.watched import Sink

Errors = Mapping[str, tuple[Tensor, Tensor]]  # by matrix: errors float [errors, rows, cols], numbers of these rows


@dataclass(frozen=True)
class Seen:
    """What a meter saw of one matrix.

    products: float32 [windows, errors], the product of each window's gradient with each rounding error, over its rows
    rows, columns: float64 [all rows], [cols], sums of squared gradients over windows, as far as rows and columns tell
    """

    products: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


class GradientMeter(Sink):
    """Sums over the windows of several batches.

    errors: rounding errors, by matrix, of all of its rows or of some
    counts: number of rows of each matrix
    Call `begin` before each batch. Where tokens of several windows are mixed (experts), the batch counts as one window.
    """

    def __init__(self, errors: Errors, counts: Mapping[str, int]) -> None:
        self._errors, self._counts = errors, counts
        self._windows = 0
        self._products: dict[str, list[Tensor]] = {name: [] for name in errors}
        self._squares = {
            name: (
                torch.zeros(counts[name], dtype=torch.float64, device=each.device),
                torch.zeros(each.shape[2], dtype=torch.float64, device=each.device),
            )
            for name, (each, _) in errors.items()
        }

    def begin(self, windows: int) -> None:
        """A new batch of so many windows."""
        self._windows = windows
        for name, found in self._products.items():
            each = self._errors[name][0]
            found.append(torch.zeros((windows, len(each)), device=each.device))

    def product(self, name: str, x: Tensor, gradient: Tensor) -> None:
        """See `Sink.product`."""
        if name not in self._errors:
            return
        apart = x.dim() == 3 and x.shape[0] == self._windows
        x = x if apart else x.reshape(1, -1, x.shape[-1])
        gradient = gradient if apart else gradient.reshape(1, -1, gradient.shape[-1])
        (errors, held), at = self._errors[name], self._products[name][-1]
        rows, columns = self._squares[name]
        some = len(held) < self._counts[name]
        if some:  # of the other rows, squares token by token
            rows += torch.einsum("wnr,wn->r", gradient.float().square(), x.float().square().sum(-1)).double()
            gradient = gradient[..., held]
        step = max(1, HELD // (len(x) * x.shape[-1]))
        for start in range(0, gradient.shape[-1], step):
            part = slice(start, start + step)
            found = gradient[..., part].transpose(1, 2) @ x  # [windows, rows, cols]
            at[: len(found)] += found.flatten(1) @ errors[:, part].flatten(1).T.to(found.dtype)
            square = found.float().square_().sum(0)
            if not some:
                rows[part] += square.sum(1).double()
            columns += square.sum(0).double()

    def rows(self, name: str, ids: Tensor, gradient: Tensor) -> None:
        """See `Sink.rows`."""
        if name not in self._errors:
            return
        (errors, held), at = self._errors[name], self._products[name][-1]
        rows, columns = self._squares[name]
        place = torch.full((self._counts[name],), -1, dtype=torch.int64, device=held.device)
        place[held] = torch.arange(len(held), device=held.device)
        for window, (own, each) in enumerate(zip(ids, gradient, strict=True)):
            unique, places = torch.unique(own, return_inverse=True)
            found = torch.zeros((len(unique), each.shape[-1]), device=each.device).index_add_(0, places, each)
            known = place[unique] >= 0
            at[window] += torch.einsum("urc,rc->u", errors[:, place[unique[known]]].float(), found[known])
            square = found.square_()
            rows[unique] += square.sum(1).double()
            columns += square.sum(0).double()

    def seen(self) -> dict[str, Seen]:
        """What was seen of each matrix."""
        found = {}
        for name, products in self._products.items():
            rows, columns = self._squares[name]
            found[name] = Seen(torch.cat(products).cpu().numpy(), rows.cpu().numpy(), columns.cpu().numpy())
        return found
