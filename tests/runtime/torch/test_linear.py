"""Every kernel of the quantized linear against a plain product."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitsmith.errors import UsageError
from bitsmith.runtime.kernel import Kernel
from bitsmith.runtime.torch import dense
from bitsmith.runtime.torch.dense import DenseKernel, slabs
from bitsmith.runtime.torch.ondemand import OnDemandKernel
from tests.runtime.small import weight_of

KERNELS: list[tuple[Kernel, float]] = [
    (DenseKernel(), 1e-5),
    (DenseKernel("bfloat16"), 0.15),
    (DenseKernel("float16"), 0.02),
    (OnDemandKernel(), 1e-5),
]
W = np.random.default_rng(0).standard_normal((37, 16)).astype(np.float32)


@pytest.mark.parametrize(("kernel", "tolerance"), KERNELS)
def test_linear(kernel: Kernel, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "SLAB_WEIGHTS", 16 * 5)
    x = np.random.default_rng(1).standard_normal((2, 3, 16)).astype(np.float32)
    assert kernel.supports("q4_k", "cpu")
    y = kernel.linear(torch.tensor(x), kernel.prepare(weight_of("w", W)))
    assert y.dtype is torch.float32
    np.testing.assert_allclose(y.numpy(), x @ W.T, atol=tolerance)


@pytest.mark.parametrize(("kernel", "tolerance"), KERNELS)
def test_gather(kernel: Kernel, tolerance: float) -> None:
    ids = np.array([[3, 36, 3], [0, 7, 7]])
    rows = kernel.gather(kernel.prepare(weight_of("w", W)), torch.tensor(ids))
    assert rows.dtype is torch.float32
    np.testing.assert_allclose(rows.numpy(), W[ids], atol=tolerance)


def test_slabs_cover_all_rows() -> None:
    assert list(slabs(5, 1 << 30)) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    step = dense.SLAB_WEIGHTS // 1000
    assert list(slabs(2 * step + 1, 1000)) == [(0, step), (step, 2 * step), (2 * step, 2 * step + 1)]


def test_unknown_dtype() -> None:
    with pytest.raises(UsageError, match="float8"):
        DenseKernel("float8")


@pytest.mark.parametrize(("kernel", "width"), [(DenseKernel(), 4), (DenseKernel("float16"), 2), (OnDemandKernel(), 4)])
def test_bytes_of_a_product(kernel: Kernel, width: int) -> None:
    assert kernel.nbytes(kernel.prepare(weight_of("w", W))) == width * W.size
