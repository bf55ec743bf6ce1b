"""Products on the C++ core, for tensors of the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from bitsmith.system.core import core
from bitsmith.torch_modules.panels import Layout, levels_of

# what inputs are rounded to at most -> how the core rounds them
_ROUNDED = {"float32": "exact", "bfloat16": "fine", "float16": "fine", "int8": "coarse"}


def available() -> bool:
    """Whether this installation has a core that multiplies stored panels."""
    return core() is not None


def forward(x: Tensor, panels: Tensor, layout: str, rows: int, precision: str) -> Tensor:
    """x [n, cols] times a matrix [rows, cols] in panels, transposed: [n, rows] in x's dtype."""
    out = torch.empty((x.shape[0], rows), dtype=torch.float32)
    wanted = str(x.dtype).removeprefix("torch.") if precision == "auto" else precision
    how = _ROUNDED.get(wanted, "exact")
    _products(torch.get_num_threads()).forward(layout, rows, x.shape[1], panels.numpy(), _floats(x), how, out.numpy())
    return out if x.dtype == torch.float32 else out.to(x.dtype)


def backward(grad: Tensor, panels: Tensor, layout: str, cols: int) -> Tensor:
    """grad [n, rows] times a matrix [rows, cols] in panels: [n, cols] in grad's dtype."""
    out = torch.empty((grad.shape[0], cols), dtype=torch.float32)
    _products(torch.get_num_threads()).back(layout, grad.shape[1], cols, panels.numpy(), _floats(grad), out.numpy())
    return out if grad.dtype == torch.float32 else out.to(grad.dtype)


def decoded(panels: Tensor, layout: Layout, rows: int, cols: int) -> Tensor:
    """A matrix of 4-bit codes in panels, its values rounded to bfloat16: [rows, cols]."""
    out = torch.empty((rows, cols), dtype=torch.bfloat16)
    products, levels = _products(torch.get_num_threads()), levels_of(layout.kind).numpy()
    shape = rows, cols, layout.width, layout.has_offset
    products.decode(*shape, panels.numpy(), levels, out.view(torch.uint16).numpy())
    return out


def _floats(x: Tensor) -> Any:
    return x.detach().to(torch.float32).contiguous().numpy()


@cache
def _products(threads: int) -> Any:
    module = core()
    assert module is not None
    return module.StoredProducts(threads)
