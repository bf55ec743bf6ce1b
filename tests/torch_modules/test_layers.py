"""Quantized layers by themselves: every format, gradients, dtypes, copies, torch.compile, the C++ core."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bitsmith.torch
from bitsmith.quant.formats import FORMATS, get_format
from bitsmith.quant.formats.base import NeedsExtent
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.system.core import core
from bitsmith.torch_modules import operations
from bitsmith.torch_modules.stored_weight import StoredWeight

GRIDS = ("nf4", "fp4", "int4-g64", "int4-g32-asym", "int8", "int3-g64", "int2-channel-asym", "int4-tensor", "nf4-dq")


def weights(rows: int = 50, cols: int = 256) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(rows, cols) * torch.rand(rows, 1)


def layer(format: str, rows: int = 50, cols: int = 256, **how: Any) -> tuple[nn.Sequential, torch.Tensor]:
    """A quantized layer and its decoded weights."""
    made = nn.Sequential(nn.Linear(cols, rows))
    with torch.no_grad():
        made[0].weight.copy_(weights(rows, cols))
    bitsmith.torch.quantize_module(made, format, **how)
    stored: StoredWeight = made[0].weight  # type: ignore[assignment]
    return made, stored.dense()


@pytest.mark.parametrize("name", FORMATS)
def test_nearest_codes_of_every_format(name: str) -> None:
    w, format = weights(), get_format(name)
    if isinstance(format, NeedsExtent):
        format = format.with_extent(float(w.min()), float(w.max()))
    codes, params = nearest(w, format)
    stored = StoredWeight.quantized(w, get_format(name), "w")
    assert torch.equal(stored.dense(), torch.as_tensor(np.asarray(format.grid(params).values(codes))))


@pytest.mark.parametrize("name", FORMATS)
def test_saved_and_loaded(name: str) -> None:
    stored = StoredWeight.quantized(weights(), get_format(name), "w")
    again = StoredWeight(get_format(name), (50, 256), torch.float32)
    again.load_state_dict(stored.state_dict())
    assert torch.equal(again.dense(), stored.dense())
    for part, value in stored.state_dict().items():
        assert torch.equal(again.state_dict()[part], value), part


@pytest.mark.parametrize("format", [*GRIDS, "fp8", "q4_k", "mxfp4"])
@pytest.mark.parametrize("batch", [1, 5])
def test_forward_and_backward(format: str, batch: int) -> None:
    made, dense = layer(format)
    x = torch.randn(batch, 256, requires_grad=True)
    y = made(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert torch.allclose(y, x @ dense.T + made[0].bias, atol=2e-4)
    assert x.grad is not None
    assert torch.allclose(x.grad, grad @ dense, atol=2e-4)
    assert made[0].bias.grad is not None
    with torch.no_grad():
        assert torch.equal(made(x), y)


@pytest.mark.parametrize(("compute", "worst"), [("float32", 1e-6), ("bfloat16", 6e-3), ("int8", 1e-2)])
@pytest.mark.parametrize("format", ["nf4", "int4-g64-asym", "int8"])
def test_compute_dtype(format: str, compute: str, worst: float) -> None:
    made, dense = layer(format, 64, 256, compute_dtype=compute)
    for batch in (1, 9):
        x = torch.randn(batch, 256)
        expected = x @ dense.T
        with torch.no_grad():
            found = made(x) - made[0].bias
        assert float((found - expected).norm() / expected.norm()) < worst


@pytest.mark.skipif(core() is None, reason="this installation has no C++ core")
@pytest.mark.parametrize("format", GRIDS)
@pytest.mark.parametrize(("rows", "cols", "batch"), [(50, 256, 1), (16, 128, 3), (96, 384, 33), (300, 128, 130)])
def test_core_beside_torch(format: str, rows: int, cols: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = layer(format, rows, cols, compute_dtype="float32")
    x = torch.randn(batch, cols, requires_grad=True)
    on_core = made(x)
    (into,) = torch.autograd.grad(on_core.square().sum(), x)
    monkeypatch.setattr(operations.core_products, "available", lambda: False)
    on_torch = made(x)
    (expected,) = torch.autograd.grad(on_torch.square().sum(), x)
    assert torch.allclose(on_core, on_torch, rtol=1e-4, atol=1e-4)
    assert torch.allclose(into, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("format", [*GRIDS, "q4_k"])
def test_training_in_bfloat16_takes_decoded_weights(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "multiplies_bfloat16", lambda: True)
    made, dense = layer(format)
    half = dense.bfloat16()
    x = torch.randn(130, 256).bfloat16().requires_grad_()
    found = made(x) - made[0].bias.bfloat16()
    (into,) = torch.autograd.grad(found.sum(), x)
    grad = torch.ones(130, 50, dtype=torch.bfloat16)
    assert torch.equal(found, x @ half.T + made[0].bias.bfloat16() - made[0].bias.bfloat16())
    assert torch.equal(into, grad @ half)
    monkeypatch.setattr(operations, "_SLAB_WEIGHTS", 16 * 256)  # four slabs
    again = made(x)
    torch.testing.assert_close(again, found + made[0].bias.bfloat16(), rtol=2e-2, atol=2e-2)
    assert torch.equal(torch.autograd.grad(again.sum(), x)[0], into)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_keep_the_codes(dtype: torch.dtype) -> None:
    made, dense = layer("int4-g64")
    made.to(dtype)
    assert made[0].weight.dtype == dtype
    assert torch.equal(made[0].weight.dense(torch.float32), dense)
    x = torch.randn(3, 256, dtype=dtype)
    assert made(x).dtype == dtype
    assert torch.allclose(made(x).float(), x.float() @ dense.T + made[0].bias.float(), atol=0.2)


def test_copies_are_apart() -> None:
    made, dense = layer("nf4")
    other = copy.deepcopy(made)
    made[0].weight.panels.zero_()
    assert torch.equal(other[0].weight.dense(), dense)


def test_weight_is_described_but_not_writable() -> None:
    made, _ = layer("nf4")
    weight = made[0].weight
    assert (tuple(weight.shape), weight.dtype, weight.device.type, weight.ndim) == ((50, 256), torch.float32, "cpu", 2)
    assert weight.numel() == 50 * 256
    with pytest.raises(AttributeError):
        weight.data += 1


def test_compiled_as_one_graph() -> None:
    made, _ = layer("nf4", 64)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 256, requires_grad=True)
    y = compiled(x)
    y.sum().backward()
    other = x.detach().clone().requires_grad_()
    expected = made(other)
    expected.sum().backward()
    assert torch.allclose(y, expected, atol=1e-5)
    assert x.grad is not None
    assert other.grad is not None
    assert torch.allclose(x.grad, other.grad, atol=1e-5)


def test_operators_are_sound() -> None:
    made, _ = layer("int8", 32, 64)
    how, parts = made[0].weight._matrix(0)
    x = torch.randn(3, 64, requires_grad=True)
    torch.library.opcheck(torch.ops.bitsmith.stored_linear.default, (x, parts, how, 32, "float32"))


def test_census_prints() -> None:
    made = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    census = bitsmith.torch.quantize_module(made, "nf4")
    lines = str(census).splitlines()
    assert lines[1].split() == ["*.weight", "x", "3", "64", "x", "64", "nf4", "32", "->", "4.5", "6.91", "kB"]
    assert lines[2].split()[-2:] == ["a", "bias"]
    assert repr(census) == "<Census: 3 of 6 parameters quantized, 49.9 kB -> 7.68 kB, 4.92 bits per weight>"
    assert '"bits_after": 4.5' in census.to_json()


@pytest.mark.skipif(core() is None, reason="this installation has no C++ core")
def test_decoding_refuses_what_does_not_fit() -> None:
    products, levels = core().StoredProducts(1), np.zeros(16, np.float32)  # type: ignore[union-attr]
    panels, out = np.zeros(16 * 36, np.uint8), np.zeros((16, 64), np.uint16)
    products.decode(16, 64, 64, False, panels, levels, out)
    for shape, given, into in (
        ((16, 64, 48, False), panels, out),
        ((16, 64, 64, True), panels, out),
        ((16, 64, 64, False), panels[:-1], out),
        ((17, 64, 64, False), panels, out),
        ((16, 64, 64, False), panels, out[:-1]),
    ):
        with pytest.raises(ValueError, match=r"fit the matrix|whole blocks"):
            products.decode(*shape, given, levels, into)
