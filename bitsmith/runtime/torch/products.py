"""Which arithmetic torch uses for products of float32 matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fast_products(device: str = "cpu") -> Iterator[None]:
    """Within it, torch gives products of float32 matrices on a CPU to oneDNN where the processor multiplies bfloat16.

    With AVX-512 oneDNN takes them in float32, at twice the speed of MKL on processors of AMD. With AMX it rounds
    their inputs to bfloat16. Other processors and devices compute as always. Sums are float32 everywhere. The setting
    is torch's, for the whole process; it is put back at the end.
    """
    if device != "cpu":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
