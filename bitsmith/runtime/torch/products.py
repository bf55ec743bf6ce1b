"""Which arithmetic torch uses for products of float32 matrices."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.weights import Block
from bitsmith.system.core import core


@contextmanager
def fast_products(device: str = "cpu") -> Iterator[None]:
    """Within it, torch gives products of float32 matrices on a CPU to oneDNN, if the processor has AVX-512 BF16 alone.

    There oneDNN takes them in float32, at twice the speed of MKL on processors of AMD. With AMX it would round their
    inputs to bfloat16, so nothing changes there, nor on other processors and devices. The setting is torch's, for the
    whole process; it is put back at the end.
    """
    if device != "cpu" or "avx512bf16" not in _isas() or "amx" in _isas():
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def _isas() -> frozenset[str]:
    """The instruction sets of this processor that the C++ core knows; none without a core."""
    module = core()
    return frozenset() if module is None else frozenset(module.isas())


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16, by the C++ core; False without a core."""
    return bool({"avx512bf16", "amx"} & _isas())


def _multiplies(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16: a CPU by its instructions, a GPU from compute capability 8.0 on."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and multiplies_bfloat16()


_KEPT_WEIGHTS = 4 << 20  # 8 MB of bfloat16


@dataclass(frozen=True)
class RoundedProducts(DenseKernel):
    """Products of float32 matrices whose inputs, and results, are rounded to bfloat16; sums are float32.

    Calibration's passes take them where the processor has them, at twice the rate of float32. What bfloat16 loses, 2^-9
    of a value, is little beside what formats below 8 bits lose.

    kept: what the latest input and small matrices are rounded to, while these exist: linears of a block often share an
        input, and all batches their matrices
    """

    kept: dict[int, tuple[weakref.ref[Tensor], Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def linear(self, x: Tensor, prepared: Tensor) -> Tensor:
        """float32 [..., cols] -> float32 [..., rows]. Inputs and matrices are not to be changed in place."""
        matrix = self._rounded(prepared, id(prepared)) if prepared.numel() <= _KEPT_WEIGHTS else prepared.bfloat16()
        return functional.linear(self._rounded(x, 0), matrix).float()

    def rounded(self, matrix: Tensor) -> Tensor:
        """A large matrix as products round it: they are the same, and it takes half of the memory."""
        return matrix if matrix.numel() <= _KEPT_WEIGHTS else matrix.bfloat16()

    def _rounded(self, x: Tensor, key: int) -> Tensor:
        found = self.kept.get(key)
        if found is not None and found[0]() is x:
            return found[1]
        rounded = x.bfloat16()
        if not x.requires_grad:
            self.kept[key] = weakref.ref(x, lambda _: self.kept.pop(key, None)), rounded
        return rounded


def with_rounded_products(block: Block, names: frozenset[str] | None = None) -> Block:
    """The block with bfloat16 products where the device multiplies it. names: of linears; None: all"""
    if not _multiplies(block.device):
        return block
    kernel = RoundedProducts()
    chosen = {name: linear for name, linear in block.linears.items() if names is None or name in names}
    return block.with_linears({name: replace(linear, kernel=kernel) for name, linear in chosen.items()})
