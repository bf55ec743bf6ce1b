"""Operations of the C++ core for passes without a cache, against those of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bitsmith.runtime.torch.core_ops import CoreOps, pass_ops
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.system.core import core

CORE = core()
TORCH = TorchOps()
pytestmark = pytest.mark.skipif(CORE is None or not hasattr(CORE, "causal_attention"), reason="no core")


def _ops() -> CoreOps:
    found = pass_ops("cpu")
    assert isinstance(found, CoreOps)
    return found


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _visible(n: int, window: int) -> Tensor:
    at = np.arange(n)
    seen = at <= at[:, None]
    if window:
        seen &= at > at[:, None] - window
    return torch.from_numpy(seen)[None]


@pytest.mark.parametrize("n", [1, 63, 300])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 64), (3, 1, 40), (2, 2, 256)])
@pytest.mark.parametrize("window", [0, 1, 70])
def test_attention(n: int, heads: int, kv_heads: int, head_dim: int, window: int) -> None:
    q = _random(2, n, heads, head_dim).swapaxes(1, 2)
    k, v = (_random(2, n + 1, kv_heads, head_dim)[:, start : start + n].swapaxes(1, 2) for start in (0, 1))
    visible = _visible(n, window)
    found = _ops().attention(q, k, v, visible, window=window)
    torch.testing.assert_close(found, TORCH.attention(q, k, v, visible), rtol=1e-4, atol=1e-5)


def test_attention_with_scale_cap_and_sinks() -> None:
    q, k, v = _random(2, 4, 90, 32), _random(2, 2, 90, 32), _random(2, 2, 90, 32)
    visible, sinks = _visible(90, 0), _random(4)
    for how in ({"scale": 0.3}, {"softcap": 5.0}, {"sinks": sinks}, {"scale": 0.1, "softcap": 3.0, "sinks": sinks}):
        found = _ops().attention(q, k, v, visible, window=0, **how)
        torch.testing.assert_close(found, TORCH.attention(q, k, v, visible, **how), rtol=1e-4, atol=1e-5)


def test_attention_is_the_same_for_any_number_of_threads() -> None:
    assert CORE is not None
    q, k, v = (_random(3, 2, 100, 32).numpy() for _ in range(3))
    found = []
    for threads in (1, 3):
        out = np.empty((3, 100, 64), np.float32)
        CORE.causal_attention(q, k, v, out=out, scale=0.2, threads=threads)
        found.append(out)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dim", [8, 6])
def test_rotation(interleaved: bool, dim: int) -> None:
    x = _random(2, 5, 3, 8).swapaxes(1, 2)
    rotation = TORCH.rotation(np.arange(5)[None], np.linspace(0.1, 2.0, dim // 2, dtype=np.float32), 0.5)
    found = _ops().rotate(x, rotation, interleaved)
    torch.testing.assert_close(found, TORCH.rotate(x, rotation, interleaved), rtol=1e-6, atol=1e-6)


def test_positions_that_differ_between_rows_stay_with_torch() -> None:
    x, positions = _random(2, 3, 5, 8), np.array([[0, 1, 2, 3, 4], [0, 0, 7, 8, 9]])
    rotation = TORCH.rotation(positions, np.ones(4, np.float32), 1.0)
    torch.testing.assert_close(_ops().rotate(x, rotation, True), TORCH.rotate(x, rotation, True))


@pytest.mark.parametrize("cols", [1, 7, 64, 100])
def test_norms_and_activations(cols: int) -> None:
    x, up, weight = _random(2, 70, cols), _random(3, 70, cols)[1:], _random(cols)
    torch.testing.assert_close(_ops().rms_norm(x, weight, 1e-5), TORCH.rms_norm(x, weight, 1e-5))
    before = x.clone()
    for activation in ("silu", "gelu_tanh", "clamped"):
        found = _ops().gated(x * 4, up * 4, activation)
        torch.testing.assert_close(found, TORCH.gated(x * 4, up * 4, activation), rtol=1e-4, atol=1e-5)
    assert torch.equal(x, before)


def test_gradients_are_those_of_torch() -> None:
    x = _random(1, 2, 3, 4).requires_grad_()
    y = _ops().rotate(x, TORCH.rotation(np.arange(3)[None], np.ones(2, np.float32), 1.0), True)
    y = _ops().attention(y, y, y, _visible(3, 0), window=0)
    y = _ops().gated(_ops().rms_norm(y, torch.ones(8), 1e-5), y, "silu")
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_what_does_not_fit_is_refused() -> None:
    assert CORE is not None
    q, out = np.zeros((1, 4, 5, 8), np.float32), np.zeros((1, 5, 32), np.float32)
    with pytest.raises(ValueError, match="evenly"):
        CORE.causal_attention(q, q[:, :3], q[:, :3], out=out, scale=1.0)
    with pytest.raises(ValueError, match="shape of the queries"):
        CORE.causal_attention(q, q[:, :2], q[:, :1], out=out, scale=1.0)
    with pytest.raises(ValueError, match="window"):
        CORE.causal_attention(q, q, q, out=out, scale=1.0, window=-1)
    with pytest.raises(ValueError, match="activation"):
        CORE.gated_rows(out[0], out[0], activation="relu", out=out[0])


def test_other_devices_keep_torch() -> None:
    assert type(pass_ops("meta")) is TorchOps
