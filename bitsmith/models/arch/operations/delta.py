"""The gated delta net: linear attention whose state forgets, and is corrected by each token (arXiv:2412.06464).

q, k and v pass a short convolution. For each head, with unit vectors q and k, a decay a and a rate b of each token:
S = a S;  S = S + b k (v - S^T k)^T;  the output is S^T q / sqrt(key_dim), normed and times silu(z).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bitsmith.models.arch.config import DeltaNet, ModelConfig
from bitsmith.models.arch.operations.base import BlockTensor, LinearGroup, Run, Tensor


class GatedDeltaNet:
    """See `bitsmith.models.arch.operations.base.Operation`.

    Its state is the last inputs of the convolution, [rows, taps - 1, mixed], and S, [rows, heads, key_dim, value_dim].
    """

    last = "ssm_out"

    def tensors(self, config: ModelConfig, layer: int) -> Iterator[BlockTensor]:
        """Names are llama.cpp's; `ssm_a` is the negative factor of the logarithm of the decay."""
        net, hidden = _net(config), config.hidden
        yield BlockTensor("ssm_a", (net.value_heads,), "vector", ending="")
        yield BlockTensor("ssm_dt", (net.value_heads,), "vector", ending="bias")
        yield BlockTensor("ssm_norm", (net.value_dim,), "vector")
        yield BlockTensor("ssm_conv1d", (net.mixed, net.taps), "taps")
        rows = {"attn_qkv": net.mixed, "attn_gate": net.values}
        if net.fused:
            rows = {"ssm_in": net.mixed + net.values}
        if config.family.delta == "fused":
            rows["ssm_ba"] = 2 * net.value_heads
        else:
            rows |= {"ssm_beta": net.value_heads, "ssm_alpha": net.value_heads}
        for name, size in rows.items():
            yield BlockTensor(name, (size, hidden), "linear")
        yield BlockTensor("ssm_out", (hidden, net.values), "linear")

    def stages(self, config: ModelConfig, layer: int, norm: str) -> tuple[tuple[LinearGroup, ...], ...]:
        """The input of the output projection takes no scale: all heads share its norm, and its gate is not linear."""
        linears = tuple(tensor.name for tensor in self.tensors(config, layer) if tensor.kind == "linear")[:-1]
        return (LinearGroup("attn_in", linears, norm or None),), (LinearGroup("ssm_out_input", ("ssm_out",), None),)

    def forward(self, run: Run, layer: int, block: Any, x: Tensor) -> Tensor:
        """See `Operation`."""
        net, ops, (batch, n, _) = _net(run.config), run.ops, x.shape
        mixed, z, rate, pace = _projected(run, block, x)
        before = run.recurrent(layer)
        taps, last = block.norms["ssm_conv1d"], None if before is None else before[0]
        mixed, last = ops.convolution(mixed, taps, last, run.counts)
        q, k, v = mixed[..., : net.keys], mixed[..., net.keys : 2 * net.keys], mixed[..., 2 * net.keys :]
        own = ops.array(_key_heads(net))
        q, k = (ops.normalized(each.reshape(batch, n, net.key_heads, net.key_dim))[:, :, own] for each in (q, k))
        v = v.reshape(batch, n, net.value_heads, net.value_dim)
        rate = ops.sigmoid(rate)
        decay = ops.softplus(pace + block.norms["ssm_dt.bias"]) * block.norms["ssm_a"]
        if run.counts is not None:  # filler changes nothing
            real = (ops.array(np.arange(n)) < run.counts[:, None])[..., None]
            rate, decay = rate * real, decay * real
        out, state = ops.delta_rule(q * net.key_dim**-0.5, k, v, decay, rate, None if before is None else before[1])
        run.keep(layer, (last, state))
        normed = ops.rms_norm(out, block.norms["ssm_norm"], run.config.norm_eps)
        gated = ops.gated(z.reshape(batch, n, net.value_heads, net.value_dim), normed, "silu")
        return block.linears["ssm_out"](gated.reshape(batch, n, net.values))


def _net(config: ModelConfig) -> DeltaNet:
    assert config.delta is not None
    return config.delta


def _key_heads(net: DeltaNet) -> np.ndarray:
    """The key head of each value head: int64 [value_heads]."""
    heads = np.arange(net.value_heads)
    return heads % net.key_heads if net.tiled else heads // (net.value_heads // net.key_heads)


def _projected(run: Run, block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k and v [batch, n, mixed]; z [batch, n, values]; rates and paces before their functions [batch, n, heads]."""
    net, (batch, n, _) = _net(run.config), x.shape
    shared = net.value_heads // net.key_heads
    if net.fused:
        rows = block.linears["ssm_in"](x).reshape(batch, n, net.key_heads, -1)
        width, at, parts = shared * net.value_dim, 0, []
        for size in (net.key_dim, net.key_dim, width, width):
            parts.append(rows[..., at : at + size].reshape(batch, n, -1))
            at += size
        mixed, z = run.ops.joined(parts[:3]), parts[3]
    else:
        mixed, z = block.linears["attn_qkv"](x), block.linears["attn_gate"](x)
    if run.config.family.delta != "fused":
        return mixed, z, block.linears["ssm_beta"](x), block.linears["ssm_alpha"](x)
    both = block.linears["ssm_ba"](x).reshape(batch, n, net.key_heads, 2 * shared)
    rate, pace = (each.reshape(batch, n, net.value_heads) for each in (both[..., :shared], both[..., shared:]))
    return mixed, z, rate, pace
