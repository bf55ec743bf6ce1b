"""The Triton kernels, held against decoded weights under Triton's interpreter: no GPU is needed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

# Triton reads its environment when it is imported, so that the kernels run in a process of their own.
PROGRAM = """
import torch
from bitsmith.quant.formats import get_format
from bitsmith.torch_modules import triton_kernels as kernels
from bitsmith.torch_modules.panels import values
from bitsmith.torch_modules.stored_weight import StoredWeight

torch.manual_seed(0)
for name in ("nf4", "fp4", "int4-g64-asym", "int4-g128", "int8-g32"):
    for rows, cols in ((40, 256), (64, 384)):
        stored = StoredWeight.quantized(torch.randn(rows, cols), get_format(name), "w")
        dense = stored.dense()
        for count, dtype, worst in ((1, torch.float32, 1e-5), (5, torch.float32, 1e-5), (20, torch.float16, 1e-3)):
            x = torch.randn(count, cols).to(dtype)
            expected = x.float() @ dense.T
            how = kernels.choice(count)
            found = kernels.forward(x, stored.panels[0], stored.layout, rows, how)
            error = float((found.float() - expected).norm() / expected.norm())
            assert found.dtype == dtype and error < worst, (name, rows, cols, count, error)
            print(name, rows, cols, count, how.kernel, error)
"""


def test_products_under_the_interpreter() -> None:
    import os

    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "one row" in done.stdout
    assert "many rows" in done.stdout


def test_the_table_takes_all_counts() -> None:
    from bitsmith.torch_modules.triton_kernels import choice

    assert [choice(count).kernel for count in (1, 2, 16, 17, 256, 257, 10**6)] == [
        "one row",
        *["many rows"] * 4,
        "decode",
        "decode",
    ]
