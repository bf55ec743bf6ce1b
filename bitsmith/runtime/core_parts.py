"""The parts of a block on the C++ core: one function for each operation of `bitsmith.models.arch.operations`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsmith.models.arch.block import ATTENTION, DELTA, EXPERTS, LAYER_EMBEDDING, MLP, parts_of
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.operations.attention import projections
from bitsmith.models.arch.operations.base import Operation
from bitsmith.models.arch.operations.experts import EXPERT_SCALE, ROUTER_SCALE, SHARED
from bitsmith.models.arch.operations.experts_beside import ExpertsBesideMlp

if TYPE_CHECKING:
    from bitsmith.runtime.core_loader import MatrixLoader

Norm = np.ndarray | None
Place = tuple[str, tuple[int, int] | None]  # a tensor, and its rows: (first, count), None for all


def core_parts(
    module: Any, loader: MatrixLoader, config: ModelConfig, layer: int
) -> Iterator[tuple[Any, Norm, Norm, float]]:
    """Operation of the core, the norms before and after it, and the scale, in the order of computation."""

    def norm(name: str) -> Norm:
        return loader.vector(f"blk.{layer}.{name}.weight") if name else None

    for part in parts_of(config, layer):
        if isinstance(part.operation, ExpertsBesideMlp):
            made = _beside(module, loader, config, layer, part.operation)
        else:
            made = _MAKERS[part.operation](module, loader, config, layer)
        scale = loader.vector(f"blk.{layer}.{part.scale}.weight") if part.scale else None
        yield made, norm(part.before), norm(part.after), 1.0 if scale is None else float(scale[0])


def _attention(module: Any, loader: MatrixLoader, config: ModelConfig, layer: int) -> Any:
    prefix, spec = f"blk.{layer}.", config.specs[layer]
    q, kv = config.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    own = projections(config, layer)
    parts: list[Place | None]
    if config.family.fused_qkv:
        parts = [("attn_qkv", (0, q)), ("attn_qkv", (q, kv)), ("attn_qkv", (q + kv, kv))]
    else:
        parts = [(name, None) if name in own else None for name in ("attn_q", "attn_k", "attn_v")]
    linears = [place and _linear(loader, config, layer, *place) for place in (*parts, ("attn_output", None))]
    vectors = {tensor.name for tensor in ATTENTION.tensors(config, layer) if tensor.kind == "vector"}
    norms = [
        loader.vector(f"{prefix}{name}.weight") if name in vectors else None
        for name in ("attn_q_norm", "attn_k_norm", "attn_sinks")
    ]
    usual = float(spec.head_dim) ** -0.5
    return module.Attention(
        linears,
        *norms,
        layer=layer if spec.keys_of is None else spec.keys_of,
        heads=config.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        norm_eps=config.norm_eps,
        window=spec.window,
        rotation=-1 if spec.rope is None else spec.rope,
        interleaved=config.rope.interleaved,
        whole_norms=config.family.qk_norm == "whole",
        late_norms=config.decoder.norm_after_rotation,
        query_scale=config.attention_scale / usual if config.attention_scale else 1.0,
        temperature=config.temperature,
        temperature_length=max(config.temperature_length, 1),
        softcap=config.attention_softcap,
        value_norms=config.decoder.value_norm,
        gated=config.family.output_gate,
    )


def _delta(module: Any, loader: MatrixLoader, config: ModelConfig, layer: int) -> Any:
    net, prefix = config.delta, f"blk.{layer}."
    assert net is not None
    assert not net.fused  # `laid_out`
    gates = ("ssm_ba",) if config.family.delta == "fused" else ("ssm_beta", "ssm_alpha")
    return module.DeltaNet(
        *(loader.linear(f"{prefix}{name}", biased=False, rows=None) for name in ("attn_qkv", "attn_gate")),
        [loader.exact(f"{prefix}{name}", biased=False) for name in gates],
        loader.linear(f"{prefix}ssm_out", biased=False, rows=None),
        loader.rows(f"{prefix}ssm_conv1d.weight"),
        loader.vector(f"{prefix}ssm_a"),
        loader.vector(f"{prefix}ssm_dt.bias"),
        loader.vector(f"{prefix}ssm_norm.weight"),
        layer=layer,
        key_heads=net.key_heads,
        value_heads=net.value_heads,
        key_dim=net.key_dim,
        value_dim=net.value_dim,
        tiled=net.tiled,
        norm_eps=config.norm_eps,
    )


def _layer_embedding(module: Any, loader: MatrixLoader, config: ModelConfig, layer: int) -> Any:
    linears = [_linear(loader, config, layer, name, None) for name in ("inp_gate", "proj")]
    return module.LayerEmbedding(config.activation, layer, *linears)


def _mlp(module: Any, loader: MatrixLoader, config: ModelConfig, layer: int) -> Any:
    inner = config.specs[layer].intermediate
    gate: Place
    up: Place
    if config.family.fused_gate:
        gate, up = ("ffn_up", (0, inner)), ("ffn_up", (inner, inner))
    else:
        gate, up = ("ffn_gate", None), ("ffn_up", None)
    linears = [_linear(loader, config, layer, *place) for place in (gate, up, ("ffn_down", None))]
    return module.Mlp(config.activation, *linears)


def _experts(module: Any, loader: MatrixLoader, config: ModelConfig, layer: int) -> Any:
    experts = config.experts
    assert experts is not None
    routed = _routed(module, loader, config, layer)
    if not experts.shared:
        return routed
    prefix = f"blk.{layer}."
    linears = [loader.linear(f"{prefix}{name}", biased=False, rows=None) for name in SHARED]
    shared = module.Mlp(config.activation, *linears)
    return module.SharedExpert(routed, shared, loader.exact(f"{prefix}ffn_gate_inp_shexp", biased=False))


def _routed(module: Any, loader: MatrixLoader, config: ModelConfig, layer: int) -> Any:
    experts, row, biased, prefix = config.experts, config.decoder.experts, config.family.expert_bias, f"blk.{layer}."
    assert experts is not None
    assert row is not None
    linear = loader.exact(f"{prefix}ffn_gate_inp", biased)
    if row.scaled:
        norm = loader.vector(f"{prefix}{ROUTER_SCALE}") * np.float32(config.hidden**-0.5)
        scales = loader.vector(f"{prefix}{EXPERT_SCALE}")
        router = module.Router(linear, norm, scales, norm_eps=config.norm_eps)
    else:
        router = module.Router(linear)
    width = experts.width
    halves = [("ffn_gate_up_exps", (0, width)), ("ffn_gate_up_exps", (width, width))]
    parts = halves if row.fused else [("ffn_gate_exps", None), ("ffn_up_exps", None)]
    loader.share = experts.used / experts.count
    stacks = [loader.stack(f"{prefix}{name}", biased, experts.count, rows) for name, rows in parts]
    stacks.append(loader.stack(f"{prefix}ffn_down_exps", biased, experts.count))
    loader.share = 1.0
    return module.Experts(
        config.activation,
        router,
        *stacks,
        loader.residency,
        used=experts.used,
        chosen=config.decoder.router == "chosen",
        normalize=experts.normalize,
    )


def _beside(module: Any, loader: MatrixLoader, config: ModelConfig, layer: int, operation: ExpertsBesideMlp) -> Any:
    norms = [loader.vector(f"blk.{layer}.{name}.weight") for name in operation.norms]
    mlp, routed = _mlp(module, loader, config, layer), _routed(module, loader, config, layer)
    return module.ExpertsBesideMlp(mlp, routed, norms, norm_eps=config.norm_eps)


def _linear(loader: MatrixLoader, config: ModelConfig, layer: int, name: str, rows: tuple[int, int] | None) -> Any:
    return loader.linear(f"blk.{layer}.{name}", config.has_bias(name, layer), rows)


_MAKERS: Mapping[Operation, Callable[[Any, MatrixLoader, ModelConfig, int], Any]] = {
    ATTENTION: _attention,
    DELTA: _delta,
    MLP: _mlp,
    EXPERTS: _experts,
    LAYER_EMBEDDING: _layer_embedding,
}
