"""Sums over tokens of an input's products: its Gram matrix X^T X, and its drift from another model's input."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from bitsmith.quant.grid import Array
from bitsmith.system.accelerators import runs_triton
from bitsmith.system.core import core

SUMMED_ROWS = 512  # tokens in one product; the result of longer sums depends on the number of threads
_STRIP = 128  # columns of x^T x that are computed together, from the diagonal on: the matrix is symmetric
_BFLOAT16 = ("avx512bf16", "amx")  # instruction sets of the core with products of bfloat16


class GramSum:
    """X^T X, and (X0 - X)^T X for inputs X0 of another model, of batches of tokens; float32 on the inputs' device.

    rounded: whether inputs may be rounded to bfloat16 where the C++ core or the accelerator multiplies that; X0 - X is
        rounded as such. Sums are float32. The result is the Gram matrix of slightly other inputs, so it stays positive
        semidefinite
    """

    def __init__(self, *, rounded: bool = False) -> None:
        self._rounded = rounded
        self._gram: Array = None  # its lower triangle is not up to date
        self._drift: Array = None

    def add(self, x: Array, original: Array = None) -> None:
        """Add tokens: float32 [..., cols], numpy or torch. original: X0 of the same shape; always or never given"""
        xp = array_namespace(x)
        rows = xp.reshape(x, (-1, x.shape[-1]))
        before = None if original is None else xp.reshape(original, (-1, x.shape[-1]))
        shape = (rows.shape[1], rows.shape[1])
        if self._gram is None:
            self._gram = xp.zeros(shape, dtype=xp.float32, device=rows.device)
        if before is not None and self._drift is None:
            self._drift = xp.zeros(shape, dtype=xp.float32, device=rows.device)
        if self._add_in_core(rows, before) or self._add_by_triton(rows, before):
            return
        for start in range(0, rows.shape[0], SUMMED_ROWS):
            part = rows[start : start + SUMMED_ROWS]
            add_products(self._gram, part, part, symmetric=True)
            if before is not None:
                add_products(self._drift, before[start : start + SUMMED_ROWS] - part, part, symmetric=False)

    @property
    def gram(self) -> Array:
        """X^T X so far, [cols, cols], of the inputs' kind; None before the first `add`."""
        return None if self._gram is None else mirror(self._gram)

    @property
    def drift(self) -> Array:
        """(X0 - X)^T X so far, [cols, cols]; None if no X0 was given."""
        return self._drift

    def taken(self) -> tuple[Array, Array]:
        """`gram` and `drift`; nothing is kept, so that their memory is free once the caller lets go of them."""
        found = self.gram, self._drift
        self._gram = self._drift = None
        return found

    def _add_in_core(self, rows: Array, before: Array) -> bool:
        """`add` in the C++ core; False where it cannot."""
        module = core()
        if module is None or not hasattr(module, "add_grams") or accelerated(rows):
            return False
        module.add_grams(
            plain(rows),
            plain(self._gram),
            None if before is None else plain(before),
            None if before is None else plain(self._drift),
            rounded=self._rounded and module.isa() in _BFLOAT16,
            threads=_threads(rows),
        )
        return True

    def _add_by_triton(self, rows: Array, before: Array) -> bool:
        """`add` of rounded inputs on an accelerator; False where it cannot."""
        if not self._rounded or isinstance(rows, np.ndarray) or not runs_triton(rows.device):
            return False
        from bitsmith.calibration.triton_grams import add_rounded, multiplies_halves

        if not multiplies_halves(rows.device):
            return False
        add_rounded(self._gram, None if before is None else self._drift, rows, before)
        return True


def _threads(x: Array) -> int:
    """Threads for products of an array: those of torch for its tensors."""
    if isinstance(x, np.ndarray):
        return 1
    import torch

    return torch.get_num_threads()


def add_products(total: Array, left: Array, right: Array, *, symmetric: bool) -> None:
    """Add left^T right to `total`, float32 [cols, cols], in place. left, right: float32 [tokens, cols]

    symmetric: whether both are the same; then only what lies on and above the diagonal is added, see `mirror`
    """
    cols = total.shape[0]
    step = _STRIP if symmetric and not accelerated(total) else cols
    for start in range(0, cols, step):
        strip, first = slice(start, start + step), start if symmetric else 0
        if isinstance(total, np.ndarray):
            total[strip, first:] += left[:, strip].T @ right[:, first:]
        else:
            total[strip, first:].addmm_(left[:, strip].T, right[:, first:])


def mirror(total: Array) -> Array:
    """Copy what lies above the diagonal to the places below it, in place. Returns `total`."""
    for start in range(0, total.shape[0], _STRIP):
        strip = slice(start, start + _STRIP)
        rows, own = total[strip, start + _STRIP :], total[strip, strip]
        total[start + _STRIP :, strip] = rows.T
        xp = array_namespace(own)
        total[strip, strip] = xp.triu(own) + xp.triu(own, k=1).T
    return total


def accelerated(x: Array) -> bool:
    """Whether a tensor lies on another device than the CPU."""
    return not isinstance(x, np.ndarray) and x.device.type != "cpu"


def plain(x: Array) -> np.ndarray:
    """A numpy array or a torch tensor of the CPU as a float32 numpy array without gaps; shared where it is one."""
    return np.ascontiguousarray(x if isinstance(x, np.ndarray) else x.detach().numpy(), np.float32)
