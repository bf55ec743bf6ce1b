"""Adam with its two moments in 32 or in 8 bits.

Kingma and Ba 2014. In 8 bits each moment is stored as codes on the dynamic map with one absmax for 256 neighbouring
values (Dettmers et al. 2021, 8-bit optimizers via block-wise quantization). The second moment is stored by its square
root, so that small ones do not vanish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsmith.quant.formats.fourbit import dynamic_map

OPTIMIZERS = ("adam", "adam-8bit")
_BLOCK = 256  # values that share an absmax
_LEAST_8BIT = 4096  # smaller tensors keep float32 moments, as their codes would save nothing
_EPSILON = 1e-8


@dataclass
class _Coded:
    """Values in 8 bits: codes uint8 [blocks, 256], absmax float32 [blocks, 1]."""

    codes: Tensor
    absmax: Tensor

    @classmethod
    def of(cls, values: Tensor, table: Tensor) -> _Coded:
        flat = torch.nn.functional.pad(values.reshape(-1), (0, -values.numel() % _BLOCK)).reshape(-1, _BLOCK)
        absmax = flat.abs().amax(1, keepdim=True)
        unit = flat / absmax.clamp(min=1e-30)
        codes = torch.bucketize(unit, (table[1:] + table[:-1]) / 2).to(torch.uint8)
        return cls(codes, absmax)

    def values(self, shape: torch.Size, table: Tensor) -> Tensor:
        return (table[self.codes.int()] * self.absmax).reshape(-1)[: shape.numel()].reshape(shape)


class Adam:
    """Adam without weight decay, over groups of tensors with step sizes of their own.

    betas: of the two moments
    small: whether moments are kept in 8 bits
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]], betas: tuple[float, float], *, small: bool = False) -> None:
        self._groups, self._betas, self._small = groups, betas, small
        self._steps = 0
        self._states: dict[int, tuple[Tensor | _Coded, Tensor | _Coded]] = {}
        self._tables: dict[torch.device, Tensor] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self._groups:
            for value in group:
                value.grad = None

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        """Move every tensor by its gradient. rates: the step size of each group"""
        self._steps += 1
        first, second = self._betas
        mean_share, square_share = 1 - first**self._steps, 1 - second**self._steps
        for group, rate in zip(self._groups, rates, strict=True):
            for value in group:
                if value.grad is None:
                    continue
                mean, square = self._moments(value)
                mean.mul_(first).add_(value.grad, alpha=1 - first)
                square.mul_(second).addcmul_(value.grad, value.grad, value=1 - second)
                divisor = (square / square_share).sqrt_().add_(_EPSILON)
                value.addcdiv_(mean, divisor, value=-rate / mean_share)
                self._keep(value, mean, square)

    def _moments(self, value: Tensor) -> tuple[Tensor, Tensor]:
        mean, root = self._states.get(id(value), (None, None))
        if mean is None or root is None:
            return torch.zeros_like(value), torch.zeros_like(value)
        if isinstance(mean, _Coded) and isinstance(root, _Coded):
            table = self._table(value.device)
            return mean.values(value.shape, table), root.values(value.shape, table).square_()
        assert isinstance(mean, Tensor)
        assert isinstance(root, Tensor)
        return mean, root

    def _keep(self, value: Tensor, mean: Tensor, square: Tensor) -> None:
        if self._small and value.numel() >= _LEAST_8BIT:
            table = self._table(value.device)
            self._states[id(value)] = _Coded.of(mean, table), _Coded.of(square.sqrt(), table)
        else:
            self._states[id(value)] = mean, square

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = torch.tensor(dynamic_map(), device=device)
        return self._tables[device]

    def kept(self) -> dict[str, np.ndarray]:
        """The number of steps and all moments, by names of their own."""
        found = {"adam.steps": np.array([self._steps], np.int64)}
        for at, value in enumerate(each for group in self._groups for each in group):
            for moment, kept in enumerate(self._states.get(id(value), ())):
                if isinstance(kept, _Coded):
                    found[f"adam.{at}.{moment}.codes"] = kept.codes.cpu().numpy()
                    found[f"adam.{at}.{moment}.absmax"] = kept.absmax.cpu().numpy()
                else:
                    found[f"adam.{at}.{moment}"] = kept.cpu().numpy()
        return found

    def restore(self, found: Mapping[str, np.ndarray]) -> None:
        """Go on behind what `kept` gave, of the same tensors."""
        self._steps = int(found["adam.steps"][0])
        for at, value in enumerate(each for group in self._groups for each in group):
            names = [f"adam.{at}.{moment}" for moment in (0, 1)]
            if any(name in found or f"{name}.codes" in found for name in names):
                mean, root = (self._restored(found, name, value.device) for name in names)
                self._states[id(value)] = mean, root

    @staticmethod
    def _restored(found: Mapping[str, np.ndarray], name: str, device: torch.device) -> Tensor | _Coded:
        if name in found:
            return torch.from_numpy(found[name].copy()).to(device)
        codes, absmax = (torch.from_numpy(found[f"{name}.{part}"].copy()).to(device) for part in ("codes", "absmax"))
        return _Coded(codes, absmax)

    @property
    def nbytes(self) -> int:
        """Bytes of all moments."""
        total = 0
        for state in self._states.values():
            for each in state:
                total += each.nbytes if isinstance(each, Tensor) else each.codes.nbytes + each.absmax.nbytes
        return total
