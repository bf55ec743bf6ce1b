"""Lists a model's tensors from its config.json, with GGUF's names: dense models, experts and latent attention."""

from __future__ import annotations

from collections.abc import Iterator

from bitsmith.models.arch.delta_config import delta_shape
from bitsmith.models.arch.family import Family
from bitsmith.planner.caches import RECURRENT, layer_kinds
from bitsmith.planner.numbers import Numbers
from bitsmith.quant.tensor import TensorInfo

Shape = tuple[int, ...]


def network_tensors(numbers: Numbers, *, parameters: int | None = None) -> tuple[TensorInfo, ...]:
    """All tensors, without layouts and bytes. Names are those of llama.cpp's converter.

    parameters: number of all weights, if known; for an unknown family, weights beside embedding, output and experts
        form one matrix a layer
    Returns an empty tuple for an unknown family without `parameters`.
    """
    if numbers.family is not None:
        named = [*_ends(numbers, numbers.family), *_layers(numbers, numbers.family)]
    elif parameters is not None:
        named = list(_lump(numbers, parameters))
    else:
        named = []
    return tuple(TensorInfo(name, shape, "", 0) for name, shape in named)


def _lump(numbers: Numbers, parameters: int) -> Iterator[tuple[str, Shape]]:
    """Tensors of an unknown family: the experts, and one matrix a layer for the rest."""
    hidden = numbers.hidden
    ends = {"token_embd.weight": (numbers.vocab, hidden)}
    ends |= {} if numbers.tied else {"output.weight": (numbers.vocab, hidden)}
    yield from ends.items()
    left = parameters - len(ends) * numbers.vocab * hidden
    routed = _routed(numbers)
    experts = 3 * numbers.experts * numbers.expert_width * hidden * len(routed)
    if experts > left:
        routed, experts = (), 0
    rows = max((left - experts) // (numbers.layers * hidden), 1)
    for layer in range(numbers.layers):
        yield f"blk.{layer}.rest.weight", (rows, hidden)
        if layer in routed:
            yield from _experts(numbers, f"blk.{layer}.", numbers.experts, "_exps")
    if left - experts - numbers.layers * rows * hidden > 0:
        yield "rest.bias", (left - experts - numbers.layers * rows * hidden,)


def _ends(numbers: Numbers, family: Family) -> Iterator[tuple[str, Shape]]:
    hidden, vocab = numbers.hidden, numbers.vocab
    yield "token_embd.weight", (vocab, hidden)
    if family.positions is not None:
        yield "position_embd.weight", (numbers.context + family.positions, hidden)
    if family.embedding_norm:
        yield from _norm("token_embd_norm", hidden, family)
    yield from _norm("output_norm", hidden, family)
    if not numbers.tied:
        yield "output.weight", (vocab, hidden)


def _layers(numbers: Numbers, family: Family) -> Iterator[tuple[str, Shape]]:
    routed = _routed(numbers)
    recurrent = [bool(family.delta) and kind in RECURRENT for kind in layer_kinds(numbers)]
    for layer in range(numbers.layers):
        blk = f"blk.{layer}."
        yield from _norms(numbers, family, blk)
        if recurrent[layer]:
            yield from _delta_net(numbers, family, blk)
        elif numbers.latent:
            yield from _latent(numbers, blk)
        else:
            yield from _attention(numbers, family, blk)
        if layer in routed:
            yield from _mixture(numbers, family, blk)
        else:
            yield from _dense(numbers, family, blk)


def _norm(name: str, width: int, family: Family) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    if family.norm_bias:
        yield f"{name}.bias", (width,)


def _norms(numbers: Numbers, family: Family, blk: str) -> Iterator[tuple[str, Shape]]:
    names = list(family.norms.names)
    if "ffn_norm" not in names and numbers.fields.flag("new_decoder_architecture", False):
        names.append("ffn_norm")
    for name in names:
        yield from _norm(blk + name, numbers.hidden, family)


def _attention(numbers: Numbers, family: Family, blk: str) -> Iterator[tuple[str, Shape]]:
    fields, hidden = numbers.fields, numbers.hidden
    said = fields.flag("attention_bias", False)
    q, kv = numbers.heads * numbers.head_dim, numbers.kv_heads * numbers.head_dim
    bias = said if family.qkv_bias is None else family.qkv_bias
    rows = 2 * q if family.output_gate else q
    linears = {"attn_qkv": q + 2 * kv} if family.fused_qkv else {"attn_q": rows, "attn_k": kv, "attn_v": kv}
    for name, rows in linears.items():
        yield from _linear(blk + name, rows, hidden, bias)
    yield from _linear(blk + "attn_output", hidden, q, said if family.output_bias is None else family.output_bias)
    norm = family.qk_norm or ("head" if fields.flag("use_qk_norm", False) else "")
    if norm:
        yield f"{blk}attn_q_norm.weight", (numbers.head_dim if norm == "head" else q,)
        yield f"{blk}attn_k_norm.weight", (numbers.head_dim if norm == "head" else kv,)
    if family.sinks:
        yield f"{blk}attn_sinks.weight", (numbers.heads,)


def _delta_net(numbers: Numbers, family: Family, blk: str) -> Iterator[tuple[str, Shape]]:
    """A gated delta net as GGUF has it, see `bitsmith.models.arch.operations.delta`."""
    net, hidden = delta_shape(numbers.fields), numbers.hidden
    yield f"{blk}ssm_a", (net.value_heads,)
    yield f"{blk}ssm_dt.bias", (net.value_heads,)
    yield f"{blk}ssm_norm.weight", (net.value_dim,)
    yield f"{blk}ssm_conv1d.weight", (net.mixed, net.taps)
    yield f"{blk}attn_qkv.weight", (net.mixed, hidden)
    yield f"{blk}attn_gate.weight", (net.values, hidden)
    if family.delta == "fused":
        yield f"{blk}ssm_ba.weight", (2 * net.value_heads, hidden)
    else:
        yield f"{blk}ssm_beta.weight", (net.value_heads, hidden)
        yield f"{blk}ssm_alpha.weight", (net.value_heads, hidden)
    yield f"{blk}ssm_out.weight", (hidden, net.values)


def _latent(numbers: Numbers, blk: str) -> Iterator[tuple[str, Shape]]:
    """Latent attention (DeepSeek-V2, 2024, section 2.1). Converters split up projections by head since 2025."""
    fields, hidden, heads = numbers.fields, numbers.hidden, numbers.heads
    rank, rope = fields.integer("kv_lora_rank"), fields.integer("qk_rope_head_dim")
    plain, value = fields.integer("qk_nope_head_dim"), fields.integer("v_head_dim")
    q_rank, q = fields.integer("q_lora_rank", 0, minimum=0), heads * (plain + rope)
    if q_rank:
        yield f"{blk}attn_q_a.weight", (q_rank, hidden)
        yield f"{blk}attn_q_a_norm.weight", (q_rank,)
        yield f"{blk}attn_q_b.weight", (q, q_rank)
    else:
        yield f"{blk}attn_q.weight", (q, hidden)
    yield f"{blk}attn_kv_a_mqa.weight", (rank + rope, hidden)
    yield f"{blk}attn_kv_a_norm.weight", (rank,)
    yield f"{blk}attn_k_b.weight", (heads, rank, plain)
    yield f"{blk}attn_v_b.weight", (heads, value, rank)
    yield f"{blk}attn_output.weight", (hidden, heads * value)


def _linear(name: str, rows: int, cols: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (rows, cols)
    if bias:
        yield f"{name}.bias", (rows,)


def _dense(numbers: Numbers, family: Family, blk: str) -> Iterator[tuple[str, Shape]]:
    inner, hidden = numbers.intermediate, numbers.hidden
    bias = numbers.fields.flag("mlp_bias", False) if family.mlp_bias is None else family.mlp_bias
    if family.fused_gate:
        yield from _linear(blk + "ffn_up", 2 * inner, hidden, bias)
    else:
        for name in ("ffn_gate", "ffn_up") if family.gated else ("ffn_up",):
            yield from _linear(blk + name, inner, hidden, bias)
    yield from _linear(blk + "ffn_down", hidden, inner, bias)


def _routed(numbers: Numbers) -> tuple[int, ...]:
    """Numbers of the layers whose MLP is a mixture of experts."""
    fields, layers = numbers.fields, range(numbers.layers)
    if not numbers.experts:
        return ()
    dense = fields.values.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise fields.fail("mlp_only_layers", "a list of layers", dense)
    first = fields.integer("first_k_dense_replace", 0, minimum=0)
    every = fields.integer("decoder_sparse_step", fields.integer("expert_layer_period", 1))
    offset = fields.integer("expert_layer_offset", every - 1, minimum=0)
    return tuple(n for n in layers if n >= first and n not in dense and n % every == offset)


def _mixture(numbers: Numbers, family: Family, blk: str) -> Iterator[tuple[str, Shape]]:
    fields, hidden, experts = numbers.fields, numbers.hidden, numbers.experts
    yield from _linear(f"{blk}ffn_gate_inp", experts, hidden, family.expert_bias)
    if family.score_bias:
        yield f"{blk}exp_probs_b.bias", (experts,)
    yield from _experts(numbers, blk, experts, "_exps")
    if family.expert_bias:
        for name, width in (("gate", numbers.expert_width), ("up", numbers.expert_width), ("down", hidden)):
            yield f"{blk}ffn_{name}_exps.bias", (experts, width)
    shared = fields.integer("shared_expert_intermediate_size", 0, minimum=0)
    if shared:
        yield f"{blk}ffn_gate_inp_shexp.weight", (1, hidden)
    shared = shared or fields.integer("n_shared_experts", 0, minimum=0) * numbers.expert_width
    if shared:
        yield f"{blk}ffn_gate_shexp.weight", (shared, hidden)
        yield f"{blk}ffn_up_shexp.weight", (shared, hidden)
        yield f"{blk}ffn_down_shexp.weight", (hidden, shared)


def _experts(numbers: Numbers, blk: str, experts: int, suffix: str) -> Iterator[tuple[str, Shape]]:
    width, hidden = numbers.expert_width, numbers.hidden
    yield f"{blk}ffn_gate{suffix}.weight", (experts, width, hidden)
    yield f"{blk}ffn_up{suffix}.weight", (experts, width, hidden)
    yield f"{blk}ffn_down{suffix}.weight", (experts, hidden, width)


def rotary_tensors(numbers: Numbers) -> tuple[TensorInfo, ...]:
    """Tensors that only GGUF files store: divisors of rotary frequencies, for Llama 3's scaling and LongRoPE."""
    fields = numbers.fields
    scaling = fields.values.get("rope_scaling") or fields.values.get("rope_parameters")
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    names = {"llama3": ("rope_freqs.weight",), "longrope": ("rope_factors_long.weight", "rope_factors_short.weight")}
    pairs = numbers.head_dim // 2
    return tuple(TensorInfo(name, (pairs,), "f32", 4 * pairs) for name in names.get(str(kind), ()))
