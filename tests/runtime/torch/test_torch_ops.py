"""The decoder's operations on torch, against plain numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitsmith.runtime.torch import ops as torch_ops
from bitsmith.runtime.torch.ops import TorchOps

OPS = TorchOps()
RNG = np.random.default_rng(0)


def _random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_rms_norm() -> None:
    x, weight = _random(2, 3, 8), _random(8)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 0.1) * weight
    np.testing.assert_allclose(OPS.rms_norm(OPS.array(x), OPS.array(weight), 0.1).numpy(), expected, rtol=1e-5)


def test_swiglu() -> None:
    gate, up = _random(4, 5), _random(4, 5)
    expected = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    np.testing.assert_allclose(OPS.gated(OPS.array(gate), OPS.array(up), "silu").numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dim", [8, 6])
def test_rotation_is_a_complex_product(interleaved: bool, dim: int) -> None:
    """Each pair, as a complex number, times magnitude * exp(i position frequency); other dimensions stay."""
    x, frequencies = _random(2, 3, 5, 8), np.abs(_random(dim // 2))
    positions = np.array([[0, 1, 2, 3, 4], [0, 0, 7, 8, 9]])
    turned = OPS.rotate(OPS.array(x), OPS.rotation(positions, frequencies, 0.5), interleaved).numpy()

    def pairs(values: np.ndarray) -> np.ndarray:
        a, b = (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(dim // 2), slice(dim // 2, dim))
        return values[..., a].astype(np.float64) + 1j * values[..., b]

    expected = pairs(x) * 0.5 * np.exp(1j * positions[:, None, :, None] * frequencies.astype(np.float64))
    np.testing.assert_allclose(pairs(turned), expected, atol=1e-5)
    np.testing.assert_array_equal(turned[..., dim:], x[..., dim:])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_attention(kv_heads: int, masked: bool) -> None:
    q, k, v = _random(2, 4, 3, 8), _random(2, kv_heads, 5, 8), _random(2, kv_heads, 5, 8)
    visible = np.tril(np.ones((3, 5), bool), 2)[None] if masked else None
    mixed = OPS.attention(OPS.array(q), OPS.array(k), OPS.array(v), None if visible is None else OPS.array(visible))
    for batch in range(2):
        for head in range(4):
            keys, values = k[batch, head * kv_heads // 4], v[batch, head * kv_heads // 4]
            scores = q[batch, head].astype(np.float64) @ keys.T / np.sqrt(8)
            if visible is not None:
                scores = np.where(visible[0], scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            expected = weights / weights.sum(-1, keepdims=True) @ values
            np.testing.assert_allclose(mixed[batch, :, head * 8 : head * 8 + 8].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("most", [1, 100, 250])
def test_attention_in_parts(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (OPS.array(_random(2, 4, 7, 8)) for _ in range(3))
    visible = OPS.array(np.tril(np.ones((1, 7, 7), bool)))
    whole = OPS.attention(q, k, v, visible)
    monkeypatch.setattr(torch_ops, "MOST_SCORES", most)
    torch.testing.assert_close(OPS.attention(q, k, v, visible), whole)


def test_gradients_flow() -> None:
    x = torch.ones(1, 2, 3, 4, requires_grad=True)
    y = OPS.rotate(x, OPS.rotation(np.arange(3)[None], np.ones(2, np.float32), 1.0), True)
    OPS.attention(y, y, y, None).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
