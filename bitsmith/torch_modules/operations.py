"""Products with stored matrices as operators of torch, so that autograd and torch.compile know them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bitsmith.quant.formats import get_format
from bitsmith.quant.formats.base import Format
from bitsmith.runtime.torch.products import multiplies_bfloat16
from bitsmith.torch_modules import core_products, panels
from bitsmith.torch_modules.bits_on_torch import unpacked
from bitsmith.torch_modules.panels import PANEL_ROWS, Layout

_FORMAT = "format:"
_SLAB_WEIGHTS = 1 << 22  # weights decoded at a time: 16 MB of float32
_HALF = "decoded"  # a precision of training: products of bfloat16, weights decoded and rounded to it
_MANY_ROWS = 128  # for these decoding a matrix takes less than its product


def matmul(x: Tensor, parts: Sequence[Tensor], how: str, rows: int, precision: str = "auto") -> Tensor:
    """x [..., cols] times a stored matrix [rows, cols], transposed: [..., rows] in x's dtype.

    parts, how: the tensors of a matrix and how they are stored, see `decoded`
    precision: of inputs in products on the CPU: "float32", "int16" (15 bits a block of 32), "int8" (8 bits), or "auto":
        float32 for float32 inputs, int16 for bfloat16 and float16. Of many bfloat16 rows that have a gradient weights
        are rounded to bfloat16 too, forward and backward, where the processor multiplies it.
    Gradients flow to x, not to the weights.
    """
    if not x.is_floating_point():
        raise TypeError(f"the input of a quantized layer is {x.dtype}; convert it to a float type.")
    flat = x.reshape(-1, x.shape[-1])
    if type(x) is Tensor and not torch.compiler.is_compiling() and not (torch.is_grad_enabled() and x.requires_grad):
        return _linear(flat, list(parts), how, rows, precision).reshape(*x.shape[:-1], rows)  # past the dispatcher
    out = torch.ops.bitsmith.stored_linear(flat, list(parts), how, rows, training_precision(flat, precision))
    return out.reshape(*x.shape[:-1], rows)  # type: ignore[no-any-return]


def _trains_in_bfloat16(x: Tensor) -> bool:
    """Whether torch's own product of a matrix that is decoded for it is the fastest one."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(x) >= _MANY_ROWS and multiplies_bfloat16()


def training_product(x: Tensor, parts: Sequence[Tensor], how: str, rows: int, precision: str = "auto") -> Tensor:
    """The product of `matmul` as it is while training, for x [n, cols], without a gradient of its own: [n, rows]."""
    return _linear(x, list(parts), how, rows, training_precision(x, precision))


def input_gradient(grad: Tensor, parts: Sequence[Tensor], how: str, cols: int, precision: str = "auto") -> Tensor:
    """What `matmul` gives its input in the backward pass: grad [n, rows] times the stored matrix, [n, cols]."""
    return _backward(grad, list(parts), how, cols, training_precision(grad, precision))


def training_precision(x: Tensor, precision: str) -> str:
    """What "auto" means for a product of x [n, cols] that has a gradient."""
    return _HALF if precision == "auto" and _trains_in_bfloat16(x) else precision


def matmul_each(
    x: Tensor, counts: Tensor, parts: Sequence[Tensor], how: str, rows: int, precision: str = "auto"
) -> Tensor:
    """Rows of x [n, cols], sorted by their matrix, times that matrix, transposed: [n, rows] in x's dtype.

    counts: int64 [matrices], rows of x for each
    parts: those of `matmul` with one more dimension, [matrices, ...]
    """
    return torch.ops.bitsmith.stored_each(x, counts, list(parts), how, rows, precision)  # type: ignore[no-any-return]


def decoded(parts: Sequence[Tensor], how: str, rows: int, cols: int) -> Tensor:
    """A stored matrix: float32 [rows, cols].

    how: a layout of panels, "nf4_64", with one tensor; or "format:int4-g64" with codes and the format's parameters as
        the native container stores them
    """
    return torch.cat([slab for _, slab in slabs(parts, how, rows, cols)])


def slabs(parts: Sequence[Tensor], how: str, rows: int, cols: int) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a stored matrix by slabs of 16 MB, decoded: (which rows, float32 [rows of the slab, cols])."""
    step = max(PANEL_ROWS, _SLAB_WEIGHTS // cols // PANEL_ROWS * PANEL_ROWS)
    for start in range(0, rows, step):
        at = slice(start, min(start + step, rows))
        count = at.stop - at.start
        if how.startswith(_FORMAT):
            yield at, _format_values(get_format(how.removeprefix(_FORMAT)), [part[at] for part in parts], cols)
        else:
            layout = Layout.named(how)
            size = layout.row_bytes(cols)
            yield at, panels.values(parts[0][start * size :][: layout.panel_bytes(count, cols)], layout, count, cols)


def _format_values(format: Format, parts: Sequence[Tensor], cols: int) -> Tensor:
    names = format.params_layout(1, cols)
    grid = format.grid(dict(zip(names, parts[1:], strict=True)))
    values: Tensor = grid.values(unpacked(parts[0], format, cols))
    return values


def _library() -> Any:
    library: Any = torch.library.Library("bitsmith", "DEF")  # type: ignore[no-untyped-call]
    library.define("stored_linear(Tensor x, Tensor[] parts, str how, int rows, str precision) -> Tensor")
    library.define("stored_linear_backward(Tensor grad, Tensor[] parts, str how, int cols, str precision) -> Tensor")
    each = "Tensor counts, Tensor[] parts, str how"
    library.define(f"stored_each(Tensor x, {each}, int rows, str precision) -> Tensor")
    library.define(f"stored_each_backward(Tensor grad, {each}, int cols, str precision) -> Tensor")
    for name, forward, fake in (
        ("stored_linear", _linear, _linear_shape),
        ("stored_linear_backward", _backward, _linear_shape),
        ("stored_each", _each, _each_shape),
        ("stored_each_backward", _each_backward, _each_shape),
    ):
        library.impl(name, forward, "CPU")
        library.impl(name, forward, "CUDA")
        torch.library.register_fake(f"bitsmith::{name}", fake, lib=library)
    torch.library.register_autograd("bitsmith::stored_linear", _gradient, setup_context=_remember, lib=library)
    torch.library.register_autograd("bitsmith::stored_each", _each_gradient, setup_context=_remember_each, lib=library)
    second = "bitsmith::stored_linear_backward"
    torch.library.register_autograd(second, _second_gradient, setup_context=_remember, lib=library)
    second = "bitsmith::stored_each_backward"
    torch.library.register_autograd(second, _each_second_gradient, setup_context=_remember_each, lib=library)
    return library


def _linear(x: Tensor, parts: list[Tensor], how: str, rows: int, precision: str) -> Tensor:
    if precision == _HALF:
        return x @ _rounded(parts, how, rows, x.shape[1]).T
    if _on_core(x, how):
        return core_products.forward(x, parts[0], how, rows, precision)
    if x.device.type == "cuda" and not how.startswith(_FORMAT) and find_spec("triton") is not None:
        from bitsmith.torch_modules import triton_kernels

        chosen = triton_kernels.choice(x.shape[0])
        if chosen.kernel != "decode":
            return triton_kernels.forward(x, parts[0], Layout.named(how), rows, chosen)
    out = torch.empty((x.shape[0], rows), dtype=x.dtype, device=x.device)
    wide = x.float()
    for at, slab in slabs(parts, how, rows, x.shape[1]):
        out[:, at] = (wide @ slab.T).to(x.dtype)
    return out


def _rounded(parts: Sequence[Tensor], how: str, rows: int, cols: int) -> Tensor:
    """A stored matrix on the CPU, its values rounded to bfloat16: [rows, cols]."""
    if not how.startswith(_FORMAT) and core_products.available() and Layout.named(how).kind != "int8":
        return core_products.decoded(parts[0], Layout.named(how), rows, cols)
    dense = torch.empty((rows, cols), dtype=torch.bfloat16)
    for at, slab in slabs(parts, how, rows, cols):
        dense[at] = slab
    return dense


def _on_core(x: Tensor, how: str) -> bool:
    return x.device.type == "cpu" and not how.startswith(_FORMAT) and core_products.available()


def _linear_shape(x: Tensor, parts: list[Tensor], how: str, width: int, precision: str) -> Tensor:
    return x.new_empty((x.shape[0], width))


def _backward(grad: Tensor, parts: list[Tensor], how: str, cols: int, precision: str) -> Tensor:
    if precision == _HALF:
        return grad @ _rounded(parts, how, grad.shape[1], cols)
    if _on_core(grad, how):
        return core_products.backward(grad, parts[0], how, cols)
    out = torch.zeros((grad.shape[0], cols), dtype=torch.float32, device=grad.device)
    wide = grad.float()
    for at, slab in slabs(parts, how, grad.shape[1], cols):
        out.addmm_(wide[:, at], slab)
    return out.to(grad.dtype)


def _each(x: Tensor, counts: Tensor, parts: list[Tensor], how: str, rows: int, precision: str) -> Tensor:
    return _by_matrix(_linear, x, counts, parts, how, rows, precision)


def _each_backward(grad: Tensor, counts: Tensor, parts: list[Tensor], how: str, cols: int, precision: str) -> Tensor:
    return _by_matrix(_backward, grad, counts, parts, how, cols, precision)


def _each_shape(x: Tensor, counts: Tensor, parts: list[Tensor], how: str, width: int, precision: str) -> Tensor:
    return x.new_empty((x.shape[0], width))


def _by_matrix(
    product: Any, x: Tensor, counts: Tensor, parts: list[Tensor], how: str, width: int, precision: str
) -> Tensor:
    out = torch.empty((x.shape[0], width), dtype=x.dtype, device=x.device)
    start = 0
    for i, count in enumerate(counts.tolist()):
        if count:
            rows = x[start : start + count]
            out[start : start + count] = product(rows, [part[i] for part in parts], how, width, precision)
            start += count
    return out


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, parts, how, _, precision = inputs
    ctx.save_for_backward(*parts)
    ctx.how, ctx.cols, ctx.precision = how, x.shape[1], precision


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    parts = list(ctx.saved_tensors)
    into = torch.ops.bitsmith.stored_linear_backward(grad.contiguous(), parts, ctx.how, ctx.cols, ctx.precision)
    return into, [None] * len(parts), None, None, None


def _second_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Of the backward pass, which is linear too: the product itself, with inputs that are not rounded."""
    parts = list(ctx.saved_tensors)
    into = torch.ops.bitsmith.stored_linear(grad.contiguous(), parts, ctx.how, ctx.cols, "float32")
    return into, [None] * len(parts), None, None, None


def _each_second_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    counts, *parts = ctx.saved_tensors
    into = torch.ops.bitsmith.stored_each(grad.contiguous(), counts, parts, ctx.how, ctx.cols, "float32")
    return into, None, [None] * len(parts), None, None, None


def _remember_each(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, counts, parts, how, _, precision = inputs
    ctx.save_for_backward(counts, *parts)
    ctx.how, ctx.cols, ctx.precision = how, x.shape[1], precision


def _each_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    counts, *parts = ctx.saved_tensors
    into = torch.ops.bitsmith.stored_each_backward(grad.contiguous(), counts, parts, ctx.how, ctx.cols, ctx.precision)
    return into, None, [None] * len(parts), None, None, None


_LIBRARY = _library()
