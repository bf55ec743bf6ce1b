"""Makes a Network from a Hugging Face config.json, alone or with the headers of its weight files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bitsmith.containers.floats import FLOATS
from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.families import FAMILIES
from bitsmith.models.arch.names import drafts, gguf_name, skipped
from bitsmith.planner.caches import layer_caches
from bitsmith.planner.layered import has_layer_facts, layered_network
from bitsmith.planner.network import Network
from bitsmith.planner.numbers import Numbers, read_numbers
from bitsmith.planner.parts import network_tensors, rotary_tensors
from bitsmith.quant.tensor import TensorInfo

_PREFIX = re.compile(r"^(model\.)?(language_model\.)?(model\.)?(transformer\.|decoder\.|gpt_neox\.)?")
_LAYER = re.compile(r"(?:layers|h|blocks)\.(\d+)\.(.+)")
_EXPERT = re.compile(r"experts\.(\d+)\.(.+)")
_STACKED = re.compile(r"(blk\.\d+\.ffn_\w+_exps)\.\d+\.weight")
_VISION = re.compile(r"vision|visual|multi_modal|mm_projector|audio|image|^vpm\.|^resampler\.|^apm\.")

# the first pattern found in a tensor's name decides its part
_PARTS = (
    (r"(shared_expert_gate)\.weight", "ffn_gate_inp_shexp"),
    (r"(shared_experts?)\.gate_proj", "ffn_gate_shexp"),
    (r"(shared_experts?)\.up_proj", "ffn_up_shexp"),
    (r"(shared_experts?)\.down_proj", "ffn_down_shexp"),
    (r"(mlp|moe|feed_forward)\.(gate|router)\.|router\.", "ffn_gate_inp"),
    (r"linear_attn\.in_proj_qkvz", "ssm_in"),
    (r"linear_attn\.in_proj_qkv", "attn_qkv"),
    (r"linear_attn\.in_proj_z", "attn_gate"),
    (r"linear_attn\.in_proj_ba", "ssm_ba"),
    (r"linear_attn\.in_proj_b\b", "ssm_beta"),
    (r"linear_attn\.in_proj_a\b", "ssm_alpha"),
    (r"linear_attn\.out_proj", "ssm_out"),
    (r"linear_attn\.conv1d", "ssm_conv1d"),
    (r"kv_a_proj", "attn_kv_a_mqa"),
    (r"kv_b_proj", "attn_kv_b"),
    (r"q_a_proj", "attn_q_a"),
    (r"q_b_proj", "attn_q_b"),
    (r"qkv_proj|query_key_value|c_attn|Wqkv", "attn_qkv"),
    (r"\bq_proj", "attn_q"),
    (r"\bk_proj", "attn_k"),
    (r"\bv_proj", "attn_v"),
    (r"\bo_proj|attn\.out_proj|attn\.c_proj|attention\.dense", "attn_output"),
    (r"gate_up_proj", "ffn_gate_up"),
    (r"gate_proj|\bw1\b", "ffn_gate"),
    (r"down_proj|\bw2\b|4h_to_h|\bfc2\b|mlp\.c_proj", "ffn_down"),
    (r"up_proj|\bw3\b|h_to_4h|\bfc1\b|mlp\.c_fc", "ffn_up"),
)


def network_from_config(config: Mapping[str, Any], *, name: str, origin: str, parameters: int | None = None) -> Network:
    """The network that a config.json describes.

    parameters: number of all weights, if known; needed for an unknown family, whose tensors then only add up to it
    Raises FileError for a missing field or an impossible value, UnsupportedError for an unknown family without
    `parameters`.
    """
    numbers = read_numbers(config, origin)
    if numbers.family is not None and has_layer_facts(numbers.family):
        return layered_network(config, numbers, name=name, origin=origin)
    tensors = network_tensors(numbers, parameters=parameters)
    if not tensors:
        raise UnsupportedError(
            f"{origin}: the tensors of model_type {numbers.model_type!r} are unknown; known are "
            f"{', '.join(FAMILIES)}. Give the folder with its safetensors files: their headers list the tensors."
        )
    return _network(numbers, name, tensors)


def network_from_headers(
    config: Mapping[str, Any], tensors: Iterable[TensorInfo], *, name: str, origin: str
) -> Network:
    """The network of a config.json and of the tensors in its weight files, with GGUF's names.

    If bitsmith does not know which tensors of codes and scales belong together, the weights are counted by the
    family's table, if there is one.
    """
    numbers = read_numbers(config, origin)
    if numbers.family is not None and has_layer_facts(numbers.family):
        return layered_network(config, numbers, name=name, origin=origin, tensors=tuple(tensors))
    renamed = _renamed(_wanted(tensors, numbers))
    foreign = any(tensor.layout not in FLOATS and "/" not in tensor.layout for tensor in renamed)
    counted = sum(tensor.parameters for tensor in network_tensors(numbers)) if foreign else 0
    return _network(numbers, name, renamed, counted)


def _network(numbers: Numbers, name: str, tensors: tuple[TensorInfo, ...], counted: int = 0) -> Network:
    fields, expert = numbers.fields, numbers.experts_used * numbers.expert_width
    shared = fields.integer("n_shared_experts", 0, minimum=0) * numbers.expert_width
    shared = fields.integer("shared_expert_intermediate_size", shared, minimum=0)
    return Network(
        name=name,
        arch=numbers.family.gguf if numbers.family else numbers.model_type,
        hidden=numbers.hidden,
        vocab=numbers.vocab,
        context=numbers.context,
        heads=numbers.heads,
        kv_heads=numbers.kv_heads,
        head_dim=numbers.head_dim,
        intermediate=expert + shared or numbers.intermediate,
        caches=layer_caches(numbers),
        tensors=tensors,
        experts=numbers.experts,
        experts_used=numbers.experts_used,
        counted=counted,
        rotary=rotary_tensors(numbers),
    )


def _wanted(tensors: Iterable[TensorInfo], numbers: Numbers) -> Iterable[TensorInfo]:
    """The tensors without duplicates, and without extra layers after the last, which only draft tokens."""
    for tensor in tensors:
        layer = _LAYER.search(tensor.name)
        after = layer is not None and int(layer[1]) >= numbers.layers and not _VISION.search(tensor.name)
        after = after or drafts(tensor.name, numbers.layers)
        if not after and not skipped(tensor.name, tied=numbers.tied):
            yield tensor


def _renamed(tensors: Iterable[TensorInfo]) -> tuple[TensorInfo, ...]:
    """Every tensor with a unique name; the experts of a layer form one stack, as in GGUF.

    If two tensors would get the same name, the second keeps its name in the file.
    """
    found: dict[str, TensorInfo] = {}
    for tensor in tensors:
        name = gguf_name(tensor.name) or _renamed_part(tensor.name)
        expert = len(tensor.shape) == 2 and _STACKED.fullmatch(name)
        if expert:
            name, below = f"{expert[1]}.weight", found.get(f"{expert[1]}.weight")
            if below is None:
                found[name] = replace(tensor, name=name, shape=(1, *tensor.shape))
                continue
            if below.shape[1:] == tensor.shape and below.layout == tensor.layout:
                stack = (below.shape[0] + 1, *tensor.shape)
                found[name] = replace(below, shape=stack, nbytes=below.nbytes + tensor.nbytes)
                continue
        name = tensor.name if name in found else name
        found[name] = replace(tensor, name=name)
    return tuple(found.values())


def _renamed_part(name: str) -> str:
    """GGUF's name, for the parts that mixes treat specially. Other parts keep their name, after "blk.N."."""
    if _VISION.search(name):
        return f"vision.{name}"
    stem = _PREFIX.sub("", name)
    if not stem.endswith((".weight", ".bias")):
        layer = _LAYER.search(stem)
        return f"blk.{int(layer[1])}.{layer[2]}" if layer else stem
    kind = "bias" if stem.endswith("bias") else "weight"
    layer = _LAYER.search(stem)
    if layer is None:
        if re.search(r"embed_tokens|\bwte\b|word_embeddings\.", stem):
            return f"token_embd.{kind}"
        if re.search(r"lm_head|embed_out", stem):
            return f"output.{kind}"
        return f"position_embd.{kind}" if re.search(r"\bwpe\b|embed_positions", stem) else stem
    number, rest = int(layer[1]), layer[2]
    expert = _EXPERT.search(rest)
    part = next((part for pattern, part in _PARTS if re.search(pattern, rest)), None)
    if part is None or "norm" in rest:
        return f"blk.{number}.{rest}" if "norm" not in rest else f"blk.{number}.{rest.rpartition('.')[0]}_norm.{kind}"
    if expert is not None:
        return f"blk.{number}.{part}_exps.{expert[1]}.{kind}"
    return f"blk.{number}.{part}{'_exps' if 'experts' in rest and 'shared' not in rest else ''}.{kind}"
