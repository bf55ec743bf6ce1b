"""One quantized matrix, or a stack of them, as a module: its buffers, how they are saved, moved and multiplied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitsmith.containers.native import CODES, NativeCodec
from bitsmith.containers.patterns import from_patterns
from bitsmith.errors import FileError, UsageError
from bitsmith.quant.bits import unpack
from bitsmith.quant.formats import get_format
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format, NeedsExtent
from bitsmith.quant.formats.codebook import Codebook
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.tensor import QuantTensor
from bitsmith.runtime.core_grids import grid_layout, grid_rows
from bitsmith.torch_modules import panels
from bitsmith.torch_modules.operations import input_gradient, matmul, matmul_each, training_product
from bitsmith.torch_modules.panels import Layout
from bitsmith.torch_modules.rounding import as_tensor, check_finite, rounded_slabs

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int8": torch.int8,
}  # by the name of numpy's type
PANELS = "panels"


class StoredWeight(nn.Module):
    """Weights [..., rows, cols] as codes and the parameters of a format; not trained.

    It has one of two sets of buffers, and always saves the first:
    - as the native container stores them: `codes` and one buffer a parameter, see `NativeCodec`
    - where the C++ core has blocks for the format: `panels`, uint8 [stack, bytes], ready for products

    format: the format
    shape: of the weights; more than two dimensions are a stack of matrices
    dtype: float type of the weights that were quantized, and of what `dense` gives by default

    Moving the module moves the buffers; another float type changes `dtype` alone, never the stored bits.
    """

    _is_hf_initialized = True  # transformers has nothing to draw at random here

    def __init__(self, format: Format, shape: tuple[int, ...], dtype: torch.dtype, device: Any = "meta") -> None:
        """Without data. Raises UnsupportedError where the format cannot divide the rows."""
        super().__init__()
        self.format, self.shape, self.dtype = format, torch.Size(shape), dtype
        name = grid_layout(format, shape[-1])
        self.layout = Layout.named(name) if name is not None and panels.known(name) else None
        for part, (stored_shape, stored_dtype) in NativeCodec(format).layout(tuple(shape)).items():
            self.register_buffer(part, torch.empty(stored_shape, dtype=_DTYPES[stored_dtype.name], device=device))
        self._parts = tuple(self._buffers)
        self.register_buffer(PANELS, None)  # saved as parts; transformers forgets what is said not to be persistent

    @classmethod
    def quantized(cls, w: Tensor, format: Format, name: str) -> StoredWeight:
        """Nearest codes of `w`, float [..., rows, cols], in slabs: on its device, on the CPU by the C++ core.

        Raises TensorError, with `name`, where a weight is Inf or NaN; UnsupportedError for rows that do not divide.
        """
        made = cls(format, tuple(w.shape), w.dtype)
        if isinstance(format, NeedsExtent):
            low, high = (float(x) for x in torch.aminmax(w.detach().float()))
            check_finite(name, low + high)
            format = format.with_extent(low, high)
        stack = w.detach().reshape(-1, *w.shape[-2:])
        if made.layout is not None:
            made._fill_panels(stack, format, name)
        else:
            made._fill_parts(stack, format, name)
        return made

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return next(b for b in self._buffers.values() if b is not None).device

    @property
    def ndim(self) -> int:
        """Number of dimensions of the weights."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(b.nbytes for b in self._buffers.values() if b is not None)

    @property
    def is_packed(self) -> bool:
        """Whether the weights lie as panels."""
        return self._buffers[PANELS] is not None

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The decoded weights, [..., rows, cols]."""
        rows, cols = self.shape[-2:]
        count = prod(self.shape[:-2])
        matrices = [self._decoded(i) for i in range(count)]
        return torch.stack(matrices).reshape(*self.shape[:-2], rows, cols).to(dtype or self.dtype)

    def multiply(self, x: Tensor, *, index: int = 0, precision: str = "auto") -> Tensor:
        """x [..., cols] times a matrix of the stack, transposed: [..., rows], in x's dtype; differentiable in x.

        precision: see `operations.matmul`
        """
        if self.layout is not None and not self.is_packed:
            self.pack()
        how, tensors = self._matrix(index)
        return matmul(x, tensors, how, self.shape[-2], precision)

    def training_product(self, x: Tensor, *, precision: str = "auto") -> Tensor:
        """The product of `multiply` as it is while training, x [n, cols] -> [n, rows]; the caller has its gradient."""
        if self.layout is not None and not self.is_packed:
            self.pack()
        how, tensors = self._matrix(0)
        return training_product(x, tensors, how, self.shape[-2], precision)

    def input_gradient(self, grad: Tensor, *, precision: str = "auto") -> Tensor:
        """The gradient of the input of `training_product` from that of its output: [n, rows] -> [n, cols]."""
        how, tensors = self._matrix(0)
        return input_gradient(grad, tensors, how, self.shape[-1], precision)

    def multiply_each(self, x: Tensor, counts: Tensor, *, precision: str = "auto") -> Tensor:
        """Rows sorted by their matrix times a stack [n, rows, cols], transposed: x [m, cols] -> [m, rows].

        counts: int64 [n], rows of x for each matrix
        """
        if self.layout is not None and not self.is_packed:
            self.pack()
        how, tensors = self._stack()
        return matmul_each(x, counts, tensors, how, self.shape[-2], precision)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def pack(self) -> None:
        """Make panels of what was loaded. Raises TensorError for codes that mean no value, UsageError without data."""
        if self.is_packed:
            return
        if self.device.type == "meta":
            raise UsageError("a quantized weight has no data: load its state first.")
        if self.layout is None:
            for i in range(prod(self.shape[:-2])):
                from_patterns(unpack(self._numpy_parts(i)[CODES], self.format.bits, self.shape[-1]), self.format)
            return
        made = []
        for i in range(prod(self.shape[:-2])):
            tensor = NativeCodec(self.format).decode(self._numpy_parts(i), self.shape[-1])
            made.append(panels.to_panels(torch.from_numpy(grid_rows(tensor, self.layout.name))))
        device = self.device
        self._set_panels(torch.stack(made).to(device), {} if _in_panels(self.format) else self._params_beside())

    def _set_panels(self, made: Tensor, kept: Mapping[str, Tensor]) -> None:
        for part in self._parts:
            self._buffers[part] = kept.get(part)
        self._buffers[PANELS] = made

    def _fill_panels(self, stack: Tensor, format: Format, name: str) -> None:
        assert self.layout is not None
        layout, (rows, cols) = self.layout, self.shape[-2:]
        size = layout.row_bytes(cols)
        made = torch.zeros((stack.shape[0], layout.panel_bytes(rows, cols)), dtype=torch.uint8)
        kept: dict[str, list[Tensor]] = {}
        in_panels = _in_panels(self.format)

        def packed(slab: QuantTensor) -> tuple[Tensor, Mapping[str, Any]]:
            blocks = torch.from_numpy(grid_rows(slab, layout.name))
            return panels.to_panels(blocks), {} if in_panels else slab.params

        for i, matrix in enumerate(stack):
            for start, (part, params) in rounded_slabs(matrix, format, name, packed):
                made[i, start * size : start * size + part.numel()] = part
                for key, value in params.items():
                    kept.setdefault(key, []).append(as_tensor(value))
        lead = tuple(self.shape[:-1])
        stored = {key: torch.cat(values).reshape(*lead, -1).to(stack.device) for key, values in kept.items()}
        self._set_panels(made.to(stack.device), stored)

    def _fill_parts(self, stack: Tensor, format: Format, name: str) -> None:
        codec = NativeCodec(self.format)
        found: dict[str, list[Tensor]] = {}
        for matrix in stack:
            for _, slab in rounded_slabs(matrix, format, name, codec.encode):
                for part, value in slab.items():
                    found.setdefault(part, []).append(as_tensor(value))
        for part in self._parts:
            shape = self._buffers[part].shape  # type: ignore[union-attr]
            self._buffers[part] = torch.cat(found[part]).reshape(shape).to(stack.device)

    def _stack(self) -> tuple[str, list[Tensor]]:
        """How the matrices are stored, and their tensors, one behind the other, for `operations`."""
        if self.is_packed:
            assert self.layout is not None
            return self.layout.name, [self._buffers[PANELS]]  # type: ignore[list-item]
        parts = [self._buffers[part] for part in self._parts]
        shape = (-1, self.shape[-2])
        return f"format:{self.format.name}", [
            p.reshape(*shape, *p.shape[self.ndim - 1 :]) for p in parts if p is not None
        ]

    def _matrix(self, index: int) -> tuple[str, list[Tensor]]:
        """The same of one matrix."""
        how, tensors = self._stack()
        return how, [each[index] for each in tensors]

    def _decoded(self, index: int) -> Tensor:
        from bitsmith.torch_modules.operations import decoded

        how, tensors = self._matrix(index)
        return decoded(tensors, how, self.shape[-2], self.shape[-1])

    def _numpy_parts(self, index: int) -> dict[str, np.ndarray]:
        _, tensors = self._matrix(index)
        return {part: as_numpy(value) for part, value in zip(self._parts, tensors, strict=True)}

    def stored_parts(self) -> dict[str, Tensor]:
        """Codes and parameters as the native container stores them, on the weights' device."""
        if not self.is_packed:
            return {part: self._buffers[part] for part in self._parts}  # type: ignore[misc]
        assert self.layout is not None
        rows, cols = self.shape[-2:]
        codec = NativeCodec(self.format)
        found: dict[str, list[Tensor]] = {}
        for i, each in enumerate(self._buffers[PANELS].cpu()):  # type: ignore[union-attr]
            blocks = panels.to_rows(each, rows, self.layout.row_bytes(cols))
            kept = {key: value.reshape(-1, rows, value.shape[-1])[i] for key, value in self._params_beside().items()}
            tensor = _from_blocks(blocks, self.layout, self.format, cols, kept)
            for part, value in codec.encode(tensor).items():
                found.setdefault(part, []).append(as_tensor(value))
        layout = codec.layout(tuple(self.shape))
        return {part: torch.cat(found[part]).reshape(layout[part][0]).to(self.device) for part in self._parts}

    def _params_beside(self) -> dict[str, Tensor]:
        """Parameters that are kept beside panels, because panels do not hold them as they are stored."""
        kept = {part: self._buffers[part] for part in self._parts if part != CODES}
        return {part: value for part, value in kept.items() if value is not None}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for part, value in self.stored_parts().items():
            destination[prefix + part] = value if keep_vars else value.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        layout = NativeCodec(self.format).layout(tuple(self.shape))
        device = self.device
        found: dict[str, Tensor] = {}
        for part, (shape, dtype) in layout.items():
            value = state_dict.get(prefix + part)
            if value is None:
                missing_keys.append(prefix + part)
            elif tuple(value.shape) != tuple(shape) or value.dtype != _DTYPES[dtype.name]:
                error_msgs.append(
                    f"{prefix}{part}: {self.format.name} stores {tuple(shape)} {_DTYPES[dtype.name]}, "
                    f"found {tuple(value.shape)} {value.dtype}."
                )
            else:
                found[part] = value.detach().clone().to("cpu" if device.type == "meta" else device)
        if strict:
            own = {prefix + part for part in layout}
            unexpected_keys += [key for key in state_dict if key.startswith(prefix) and key not in own]
        if len(found) != len(layout):
            return
        self._buffers[PANELS] = None
        self._buffers.update(found)
        self.pack()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StoredWeight:
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.device)).dtype
        for name, buffer in self._buffers.items():
            if buffer is not None:  # as bytes: a cast of the floats leaves them alone
                flat = fn(buffer.contiguous().reshape(-1).view(torch.uint8))
                self._buffers[name] = flat.view(buffer.dtype).reshape(buffer.shape)
        return self

    def extra_repr(self) -> str:
        """For `repr`."""
        return f"{self.format.name}, {tuple(self.shape)}"


def make_stored(name: str, format: str, shape: tuple[int, ...], dtype: torch.dtype) -> StoredWeight:
    """A weight without data for a file's tensor. Raises FileError where its format or shape makes no sense."""
    try:
        return StoredWeight(get_format(format), shape, dtype)
    except UsageError as error:
        raise FileError(f"{name}: {error.message}") from error


def _in_panels(format: Format) -> bool:
    """Whether the stored parameters can be had from blocks again, exactly."""
    return isinstance(format, Affine | Codebook)


def _from_blocks(blocks: Tensor, layout: Layout, format: Format, cols: int, kept: Mapping[str, Tensor]) -> QuantTensor:
    """What `grid_rows` made blocks of. kept: parameters that blocks do not hold"""
    codes = panels.codes(blocks, layout)
    if layout.has_offset:  # integers: half of their range was added, and of fewer than 4 bits that of 4
        codes = codes - ((128 if layout.kind == "int8" else 8) - (1 << (format.bits - 1)))
    if kept or not isinstance(format, Affine | Codebook):
        return QuantTensor(format, codes.numpy(), {key: as_numpy(value) for key, value in kept.items()})
    scale, offset = panels.scales(blocks, layout)
    if isinstance(format, Codebook):
        block = format.block or cols
        return QuantTensor(format, codes.numpy(), {"scale": scale[:, :: block // layout.width].numpy()})
    plain = format
    step = (plain.group or cols) // layout.width
    scale = scale[:, ::step]
    params: dict[str, Any] = {"scale": scale.to(_DTYPES[plain.scale_dtype.name])}
    if plain.asymmetric:
        assert offset is not None
        divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
        params["zero"] = ((1 << (plain.bits - 1)) - offset[:, ::step] / divisor).round().clamp(0, 255).to(torch.uint8)
    return QuantTensor(format, codes.numpy(), {key: as_numpy(value) for key, value in params.items()})
