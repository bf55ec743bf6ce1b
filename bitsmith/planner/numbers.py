"""Reads the numbers of a config.json. Families have different names for them; here each has one name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.arch.config import MAX_LAYERS
from bitsmith.models.arch.families import FAMILIES
from bitsmith.models.arch.family import Family
from bitsmith.models.arch.fields import Fields

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num")
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_VOCAB = ("vocab_size", "padded_vocab_size")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
_SECTIONS = ("attn_config", "ffn_config")  # nested sections that hold some of these fields in some families
_NO_DECODERS = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "deberta", "deberta-v2", "t5", "mt5", "bart")
_LARGEST_CONTEXT = 100_000_000  # tokens; tokenizers write 1e30 for "no limit"


@dataclass(frozen=True)
class Numbers:
    """The numbers of a decoder.

    fields: all fields of config.json; those of the text part if the model has several parts
    family: None for an unknown model_type
    intermediate: width of a dense MLP
    expert_width: width of one expert; 0 if there are no experts
    """

    fields: Fields
    model_type: str
    family: Family | None
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    tied: bool
    experts: int = 0
    experts_used: int = 0
    expert_width: int = 0

    @property
    def latent(self) -> int:
        """Numbers that latent attention keeps for one token in one layer; 0 without latent attention."""
        rank = self.fields.integer("kv_lora_rank", 0, minimum=0)
        return rank + self.fields.integer("qk_rope_head_dim", minimum=1) if rank else 0


def read_numbers(config: Mapping[str, Any], origin: str) -> Numbers:
    """Read a parsed config.json; `origin` names it in errors.

    Raises FileError for a missing field (naming all names it may have) or an impossible value, UnsupportedError for a
    model that is no decoder.
    """
    config = _text_part(config)
    model_type = Fields(config, origin).text("model_type", "")
    family = FAMILIES.get(model_type)
    fields = Fields({**(family.defaults if family else {}), **_flat(config)}, origin)
    if model_type in _NO_DECODERS or fields.flag("is_encoder_decoder", False):
        raise UnsupportedError(
            f"{origin}: {model_type or 'an encoder'} does not generate text token by token; give a decoder model."
        )
    layers = _any(fields, _LAYERS, maximum=MAX_LAYERS)
    hidden, heads = _any(fields, _HIDDEN), _any(fields, _HEADS)
    kv_heads = _kv_heads(fields, family, heads)
    if heads % kv_heads:
        raise fields.fail(_present(fields, _KV_HEADS), f"a divisor of the {heads} attention heads", kv_heads)
    if not fields.has("head_dim") and hidden % heads:
        raise fields.fail(_present(fields, _HEADS), f"a divisor of the hidden size ({hidden})", heads)
    widening = family.widening if family else 4
    inner = _widest(fields, _INNER, 0 if family and family.gated else widening * hidden)
    if not inner:
        raise FileError(f"{origin}: {_INNER[0]} is missing; it gives the width of the MLP.")
    experts = _any(fields, _EXPERTS, default=0, minimum=0)
    width = _widest(fields, ("moe_intermediate_size",), inner)
    used = _any(fields, _USED) if experts else 0
    if used > experts:
        raise fields.fail(_present(fields, _USED), f"at most the {experts} experts", used)
    return Numbers(
        fields=fields,
        model_type=model_type,
        family=family,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=fields.integer("head_dim", hidden // heads),
        intermediate=fields.integer("intermediate_size_mlp", inner),
        vocab=_any(fields, _VOCAB),
        context=_context(fields, family),
        tied=fields.flag("tie_word_embeddings", family.tied if family else False),
        experts=experts,
        experts_used=used,
        expert_width=width if experts else 0,
    )


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the text decoder, if the model also takes images or sound."""
    for name in ("text_config", "language_config", "llm_config"):
        part = config.get(name)
        if isinstance(part, dict) and any(field in part for field in _HIDDEN):
            return part
    return config


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """All fields, with those of nested sections and without nulls."""
    parts = [config, *(config[name] for name in _SECTIONS if isinstance(config.get(name), dict))]
    return {name: value for part in parts for name, value in part.items() if value is not None}


def _widest(fields: Fields, names: tuple[str, ...], default: int) -> int:
    """A width. If the field lists one for each layer, the largest."""
    name = _present(fields, names)
    value = fields.values.get(name)
    if isinstance(value, list) and value:
        each = [Fields({name: one}, fields.origin).integer(name, minimum=0) for one in value[:MAX_LAYERS]]
        return max(each)
    return fields.integer(name, default, minimum=0)


def _context(fields: Fields, family: Family | None) -> int:
    """The model's context in tokens, with YaRN's scaling; 0 if the fields do not say."""
    said = _any(fields, _CONTEXT, default=family.context if family else 0, minimum=0)
    longest = fields.values.get("model_max_length")
    if isinstance(longest, int) and said < longest <= _LARGEST_CONTEXT:
        said = longest
    scaling = fields.values.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) == "yarn":
        stretched = Fields(scaling, f"{fields.origin}: rope_scaling")
        original = stretched.integer("original_max_position_embeddings", said)
        said = max(said, int(original * stretched.number("factor", 1.0)))
    return said


def _kv_heads(fields: Fields, family: Family | None, heads: int) -> int:
    if fields.flag("multi_query", False) and not fields.flag("new_decoder_architecture", False):
        return 1
    return _any(fields, _KV_HEADS, default=heads)


def _any(
    fields: Fields, names: tuple[str, ...], *, default: int | None = None, minimum: int = 1, maximum: int | None = None
) -> int:
    """The value of a field that has several possible names."""
    name = _present(fields, names)
    if default is None and not fields.has(name):
        others = f" (or {', '.join(names[1:])})" if names[1:] else ""
        raise FileError(f"{fields.origin}: {names[0]}{others} is missing; the plan needs it for the model's shape.")
    limit = {} if maximum is None else {"maximum": maximum}
    return fields.integer(name, default, minimum=minimum, **limit)


def _present(fields: Fields, names: tuple[str, ...]) -> str:
    """The first of the names that config.json has; the first name if it has none."""
    return next((name for name in names if fields.has(name)), names[0])
