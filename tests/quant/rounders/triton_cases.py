"""Triton's kernels beside the code on torch tensors, run as a program under Triton's interpreter by test_triton_slab.

Triton reads its environment when it is imported, so that this is a process of its own. The interpreter takes about a
second for a hundred columns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch

from bitsmith.quant.formats import get_format
from bitsmith.quant.formats.base import Format, NeedsExtent
from bitsmith.quant.rounders import gptq, triton_pivots
from bitsmith.quant.rounders.core_slab import CoreSlab
from bitsmith.quant.rounders.hessian import Factor, Order, _pivoted_by_torch, prepare
from bitsmith.quant.rounders.triton_slab import TritonSlab
from tests.quant.rounders.problems import problem


def given(rows: int, cols: int, order: Order = "pivoted") -> tuple[torch.Tensor, Factor]:
    """Weights, and the factor of inputs with a column that is always zero."""
    w, h = problem(rows, cols)
    h[5], h[:, 5] = 0, 0
    return torch.from_numpy(w), prepare(h, order=order)


def compare(name: str, rows: int, cols: int, sweeps: int, order: Order = "pivoted") -> None:
    """Codes, parameters and errors of GPTQ: those of torch's code."""
    w, factor = given(rows, cols, order)
    format: Format = get_format(name)
    if isinstance(format, NeedsExtent):
        format = format.with_extent(float(w.min()), float(w.max()))
    how = gptq._Sweeps(sweeps, True)
    slab = TritonSlab.of(w, factor)
    assert slab is not None
    found = gptq._by_slab(w, slab, format, factor, how)
    expected = gptq._by_torch(gptq._even(w), format, factor, how)
    for own, wanted in zip(found, expected, strict=True):
        differing = int((own.codes != wanted.codes[:rows]).sum())
        assert differing == 0, f"{name}: {differing} codes differ"
        torch.testing.assert_close(own.error, wanted.error[:rows], rtol=1e-4, atol=1e-7)
        for param, values in own.params.items():
            like = wanted.params[param][:rows]
            near = values.dtype == torch.float32 and torch.allclose(values, like, rtol=1e-5)  # sums in another order
            assert near or torch.equal(values, like), f"{name}: {param} differs"


def published() -> None:
    """GPTQ's pass alone: integers, tables, small and large, whole rows, any order."""
    compare("int4-g64-asym", 20, 192, 0)
    compare("nf4", 5, 128, 0, "natural")
    compare("fp8", 18, 64, 0)


def swept() -> None:
    """With two sweeps that refit: integers by a kernel of their own, others by the format."""
    compare("int4-g32", 18, 96, 1)  # scales have a sign
    compare("int3-channel-asym", 16, 288, 1)
    compare("int2-g64-asym", 16, 128, 2)
    compare("int4-g64-f16", 4, 64, 1)
    compare("q4_k", 8, 256, 1)


def together() -> None:
    """Matrices that are rounded together get what each gets alone."""
    CoreSlab.of = classmethod(lambda *args: None)  # type: ignore[assignment, method-assign]
    w, factor = given(24, 96)
    format = get_format("int4-g32-asym")
    parts = [w[:5].numpy(), w[5:].numpy()]
    for part, own in zip(parts, gptq.gptq_each(parts, format, factor, sweeps=1), strict=True):
        alone = gptq.gptq_rows(part, format, factor, sweeps=1)
        assert np.array_equal(own.codes, alone.codes)
        assert own.report.rows == len(part)
        np.testing.assert_allclose(own.report.error, alone.report.error, rtol=1e-5)


def pivots() -> None:
    """The order with pivots, in parts; and a matrix that is not positive definite."""
    triton_pivots._WIDTH = 32
    for cols in (40, 150):
        _, h = problem(2, cols)
        gram = torch.from_numpy(h)
        mean = float(gram.diagonal().mean())
        ridge = torch.full((cols,), 0.03 * mean)
        found = triton_pivots.pivoted(gram, ridge, 1e-4 * mean)
        assert found is not None
        assert torch.equal(found, _pivoted_by_torch(gram, ridge, ridge, mean))
    assert triton_pivots.pivoted(-torch.eye(40), torch.zeros(40), 1e-4) is None


CASES: dict[str, Callable[[], None]] = {each.__name__: each for each in (published, swept, together, pivots)}

if __name__ == "__main__":
    CASES[sys.argv[1]]()
