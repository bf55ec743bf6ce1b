"""Softmax attention with grouped heads, and everything that families vary about it.

Their parameters: q/k/v fused or apart, biases, norms of q and k per head or whole and before or after the rotation,
partial or no rotation, windows, scale, softcap, sinks, temperature, and a gate of the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.operations.base import BlockTensor, LinearGroup, Run, Tensor


class Attention:
    """See `bitsmith.models.arch.operations.base.Operation`."""

    def tensors(self, config: ModelConfig, layer: int) -> Iterator[BlockTensor]:
        """Norms of q and k, sinks, and the linears."""
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        if config.qk_norm:
            whole = config.family.qk_norm == "whole"
            yield BlockTensor("attn_q_norm", (q if whole else config.head_dim,), "vector")
            yield BlockTensor("attn_k_norm", (kv if whole else config.head_dim,), "vector")
        if config.family.sinks:
            yield BlockTensor("attn_sinks", (config.heads,), "vector")
        gated = 2 if config.family.output_gate else 1
        rows = {"attn_q": gated * q, "attn_k": kv, "attn_v": kv}
        if config.family.fused_qkv:
            rows = {"attn_qkv": q + 2 * kv}
        for name, size in rows.items():
            yield BlockTensor(name, (size, config.hidden), "linear", config.has_bias(name, layer))
        yield BlockTensor("attn_output", (config.hidden, q), "linear", config.has_bias("attn_output", layer))

    def stages(self, config: ModelConfig, layer: int, norm: str) -> tuple[tuple[LinearGroup, ...], ...]:
        """Fused projections cannot take the scale of the output projection's input: it would hit q and k too."""
        fused = config.family.fused_qkv
        linears = ("attn_qkv",) if fused else ("attn_q", "attn_k", "attn_v")
        mixed = None if fused else "attn_v"
        return (
            (LinearGroup("attn_in", linears, norm or None),),
            (LinearGroup("o_proj_input", ("attn_output",), mixed, config.heads // config.kv_heads),),
        )

    def forward(self, run: Run, layer: int, block: Any, x: Tensor) -> Tensor:
        """See `Operation`."""
        return block.linears["attn_output"](self._mixed(run, layer, block, x))

    def _mixed(self, run: Run, layer: int, block: Any, x: Tensor) -> Tensor:
        """Values weighted by attention: [batch, n, heads * head_dim]."""
        config, ops = run.config, run.ops
        q, k, v = self._projected(run, block, x)
        gate = None
        if config.family.output_gate:  # behind the rows of its head of q
            q, gate = q[..., : config.head_dim], q[..., config.head_dim :]
        late = config.decoder.norm_after_rotation
        if config.qk_norm and config.family.qk_norm != "whole" and not late:
            q = ops.rms_norm(q, block.norms["attn_q_norm"], config.norm_eps)
            k = ops.rms_norm(k, block.norms["attn_k_norm"], config.norm_eps)
        q, k = run.rotated(layer, q.swapaxes(1, 2)), run.rotated(layer, k.swapaxes(1, 2))
        if config.qk_norm and late:
            q = ops.rms_norm(q, block.norms["attn_q_norm"], config.norm_eps)
            k = ops.rms_norm(k, block.norms["attn_k_norm"], config.norm_eps)
        if config.temperature:
            q = run.tempered(q)
        k, v, mask = run.visible(layer, k, v)
        mixed = ops.attention(
            *(q, k, v, mask),
            scale=config.attention_scale or None,
            softcap=config.attention_softcap,
            sinks=block.norms.get("attn_sinks"),
        )
        return mixed if gate is None else mixed * ops.sigmoid(gate.reshape(mixed.shape))

    def _projected(self, run: Run, block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q and k [batch, n, heads, head_dim], v [batch, kv_heads, n, head_dim]. With a gate, q is twice as wide."""
        config, ops = run.config, run.ops
        batch, n = x.shape[0], x.shape[1]
        if config.family.fused_qkv:
            rows = block.linears["attn_qkv"](x)
            first, second = config.heads * config.head_dim, (config.heads + config.kv_heads) * config.head_dim
            q, k, v = rows[..., :first], rows[..., first:second], rows[..., second:]
        else:
            q, k = block.linears["attn_q"](x), block.linears["attn_k"](x)
            v = block.linears["attn_v"](x)
        if config.qk_norm and config.family.qk_norm == "whole":
            q = ops.rms_norm(q, block.norms["attn_q_norm"], config.norm_eps)
            k = ops.rms_norm(k, block.norms["attn_k_norm"], config.norm_eps)
        return (
            q.reshape(batch, n, config.heads, -1),
            k.reshape(batch, n, config.kv_heads, config.head_dim),
            v.reshape(batch, n, config.kv_heads, config.head_dim).swapaxes(1, 2),
        )
