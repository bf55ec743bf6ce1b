"""Softmax attention with grouped heads, and everything that families vary about it.

Their parameters: q/k/v fused or apart, biases, norms of q and k per head or whole and before or after the rotation,
norms of v, keys as values, keys and values of an earlier layer, head sizes by layer, partial or no rotation, windows,
scale, softcap, sinks, temperature, and a gate of the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.operations.base import BlockTensor, LinearGroup, Run, Tensor


class Attention:
    """See `bitsmith.models.arch.operations.base.Operation`."""

    last = "attn_output"

    def tensors(self, config: ModelConfig, layer: int) -> Iterator[BlockTensor]:
        """Norms of q and k, sinks, and the linears."""
        spec = config.specs[layer]
        q, kv = config.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        if config.qk_norm:
            whole = config.family.qk_norm == "whole"
            yield BlockTensor("attn_q_norm", (q if whole else spec.head_dim,), "vector")
            if spec.keys_of is None:
                yield BlockTensor("attn_k_norm", (kv if whole else spec.head_dim,), "vector")
        if config.family.sinks:
            yield BlockTensor("attn_sinks", (config.heads,), "vector")
        gated = 2 if config.family.output_gate else 1
        rows = {"attn_qkv": q + 2 * kv, "attn_q": gated * q, "attn_k": kv, "attn_v": kv}
        for name in projections(config, layer):
            yield BlockTensor(name, (rows[name], config.hidden), "linear", config.has_bias(name, layer))
        yield BlockTensor("attn_output", (config.hidden, q), "linear", config.has_bias("attn_output", layer))

    def stages(self, config: ModelConfig, layer: int, norm: str) -> tuple[tuple[LinearGroup, ...], ...]:
        """Fused projections cannot take the scale of the output projection's input: it would hit q and k too.

        A norm of values would undo it, and the values of an earlier layer have other readers.
        """
        linears = projections(config, layer)
        takes = "attn_v" in linears and not config.decoder.value_norm
        repeats = config.heads // config.specs[layer].kv_heads
        return (
            (LinearGroup("attn_in", linears, norm or None),),
            (LinearGroup("o_proj_input", ("attn_output",), "attn_v" if takes else None, repeats),),
        )

    def forward(self, run: Run, layer: int, block: Any, x: Tensor) -> Tensor:
        """See `Operation`."""
        return block.linears["attn_output"](self._mixed(run, layer, block, x))

    def _mixed(self, run: Run, layer: int, block: Any, x: Tensor) -> Tensor:
        """Values weighted by attention: [batch, n, heads * head_dim]."""
        config, ops = run.config, run.ops
        parts, gate = self._projected(run, layer, block, x), None
        if config.family.output_gate:  # behind the rows of its head of q
            head_dim = config.specs[layer].head_dim
            gate, parts = parts[0][..., head_dim:], (parts[0][..., :head_dim], *parts[1:])
        names = ("attn_q_norm", "attn_k_norm")
        q, *own = [
            self._turned(run, layer, part, block.norms.get(name)) for part, name in zip(parts, names, strict=False)
        ]
        if config.temperature:
            q = run.tempered(q)
        if own:
            v = parts[2].swapaxes(1, 2)
            if config.decoder.value_norm:
                v = ops.unit(v, config.norm_eps)
            k, v, mask = run.visible(layer, own[0], v)
        else:
            k, v, mask = run.visible_of(layer)
        mixed = ops.attention(
            *(q, k, v, mask),
            scale=config.attention_scale or None,
            softcap=config.attention_softcap,
            sinks=block.norms.get("attn_sinks"),
            window=run.window(layer),
        )
        return mixed if gate is None else mixed * ops.sigmoid(gate.reshape(mixed.shape))

    def _turned(self, run: Run, layer: int, x: Tensor, norm: Tensor | None) -> Tensor:
        """Queries or keys [batch, n, heads, head_dim], normed and rotated: [batch, heads, n, head_dim]."""
        config, x = run.config, x.swapaxes(1, 2)
        by_head = norm is not None and config.family.qk_norm != "whole"
        if by_head and not config.decoder.norm_after_rotation:
            x = run.ops.rms_norm(x, norm, config.norm_eps)
        x = run.rotated(layer, x)
        return run.ops.rms_norm(x, norm, config.norm_eps) if by_head and config.decoder.norm_after_rotation else x

    def _projected(self, run: Run, layer: int, block: Any, x: Tensor) -> tuple[Tensor, ...]:
        """q, k and v, [batch, n, heads or kv_heads, head_dim]; only q if the layer has no keys of its own.

        With a gate, q is twice as wide.
        """
        config, ops, spec = run.config, run.ops, run.config.specs[layer]
        if config.family.fused_qkv:
            rows = block.linears["attn_qkv"](x)
            first, second = config.heads * spec.head_dim, (config.heads + spec.kv_heads) * spec.head_dim
            parts = [rows[..., :first], rows[..., first:second], rows[..., second:]]
        else:
            parts = [block.linears[name](x) for name in projections(config, layer)]
        if config.qk_norm and config.family.qk_norm == "whole":
            for i, name in enumerate(("attn_q_norm", "attn_k_norm")):
                parts[i] = ops.rms_norm(parts[i], block.norms[name], config.norm_eps)
        if len(parts) == 2:
            parts.append(parts[1])
        counts = (config.heads, spec.kv_heads, spec.kv_heads)
        return tuple(
            part.reshape(x.shape[0], x.shape[1], count, -1) for part, count in zip(parts, counts, strict=False)
        )


def projections(config: ModelConfig, layer: int) -> tuple[str, ...]:
    """The linears that read the attention's input."""
    spec = config.specs[layer]
    if config.family.fused_qkv:
        return ("attn_qkv",)
    if spec.keys_of is not None:
        return ("attn_q",)
    return ("attn_q", "attn_k") if spec.keys_as_values else ("attn_q", "attn_k", "attn_v")
