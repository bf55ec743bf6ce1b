"""The fields of config.json that change a model's computation and are not read, and those that change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.families import FAMILIES
from bitsmith.models.arch.fields import is_neutral

# read by `config_from_hf`, or settled by the tensors (`reconcile`)
_READ = frozenset(
    [
        *("architectures", "model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"),
        *("max_position_embeddings", "num_key_value_heads", "head_dim", "hidden_act", "intermediate_size"),
        *("rms_norm_eps", "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters"),
        *("original_max_position_embeddings", "partial_rotary_factor", "attention_bias", "mlp_bias", "qkv_bias"),
        *("bias", "use_bias", "quantization_config", "compression_config", "quantization"),
    ]
)
_WINDOW_FIELDS: Mapping[str, tuple[str, ...]] = {
    "all": ("sliding_window",),
    "by_field": ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    "by_flag": ("sliding_window", "use_sliding_window"),
    "alternating": ("sliding_window", "layer_types", "sliding_window_pattern"),
    "pattern": ("sliding_window", "layer_types", "sliding_window_pattern"),
}
# for training, generation, or the loading program
_HARMLESS = frozenset(
    [
        *("initializer_range", "initializer_factor", "use_cache", "pretraining_tp", "torch_dtype", "dtype"),
        *("transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "gradient_checkpointing"),
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_flash_attn_2_enabled"),
        *("output_attentions", "output_hidden_states", "return_dict", "torchscript", "use_bfloat16", "use_flash_attn"),
        *("is_encoder_decoder", "is_decoder", "add_cross_attention", "cross_attention_hidden_size"),
        *(
            "tie_encoder_decoder",
            "pruned_heads",
            "chunk_size_feed_forward",
            "tokenizer_class",
            "prefix",
            "max_window_layers",
        ),
        *("task_specific_params", "problem_type", "num_labels", "id2label", "label2id", "finetuning_task"),
        *(
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "unk_token_id",
            "sep_token_id",
            "eod_token_id",
            "decoder_start_token_id",
        ),
        *("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
        *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "temperature"),
        *("diversity_penalty", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores"),
        *("return_dict_in_generate", "remove_invalid_values", "exponential_decay_length_penalty", "tf_legacy_loss"),
        *("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "residual_dropout"),
        *("embedding_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
        *("unsloth_version", "unsloth_fixed", "is_llama_config", "max_sequence_length", "model_max_length"),
        *("seq_length", "tf32", "ffn_hidden_size", "layer_norm_eps"),
        *("tie_last_hidden_states", "auto_map", "max_window_layers"),
    ]
)
# change the computation in some family: the value without effect, beside null, false, zero and nothing
_CHANGING: Mapping[str, Any] = {
    "hidden_activation": "silu",
    "activation_function": "silu",
    "activation": "swiglu",  # a silu with a gate, as in the families that we know
    "position_embedding_type": "rope",
    "norm_type": "rms_norm",
    "layer_norm_type": "rms_norm",
    "attention_type": "full",
    "scale_attn_weights": True,
    "use_rmsnorm": True,
    "use_rope": True,
    "is_causal": True,
    **dict.fromkeys(
        [
            *("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb"),
            *("embedding_scale", "residual_scale", "rotary_pct", "rope_ratio", "num_experts", "num_local_experts"),
            *("n_routed_experts", "moe_num_experts", "rope_percent", "key_multiplier"),
            *("routed_scaling_factor", "n_group", "topk_group"),
            *("lm_head_multiplier", "attention_in_multiplier", "attention_out_multiplier", "softmax_scale_factor"),
        ],
        1,
    ),
    **dict.fromkeys(
        [
            *("logit_softcapping", "final_logit_softcapping", "attn_logit_softcapping", "logits_soft_cap"),
            *("query_pre_attn_scalar", "attention_multiplier", "attention_scale", "attn_scale", "softmax_scale"),
            *("scale_depth", "dim_model_base", "rotary_dim", "alibi", "use_alibi", "clip_qkv", "qk_norm"),
            *("use_qk_norm", "qk_layernorm", "use_qk_layernorm", "no_rope_layers"),
            *("no_rope_layer_interval", "nope_layer_interval", "attention_chunk_size", "attn_temperature_tuning"),
            *("floor_scale", "attention_sinks", "attention_sink_size", "parallel_attn", "use_parallel_residual"),
            *("use_mrope", "mrope_section", "num_kv_shared_layers", "rope_interleaved", "rope_local_base_freq"),
            *("kv_lora_rank", "swiglu_limit", "swiglu_alpha", "attn_output_gate", "scale_embeddings", "parallel_block"),
            *("shared_expert_intermediate_size", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
            *("first_k_dense_replace", "decoder_sparse_step_offset", "use_bidirectional_attention"),
            *("q_lora_rank", "per_layer_config", "mlp_only_layers", "cla_share_factor", "use_cla", "layer_types"),
            *("sliding_window", "use_sliding_window", "sliding_window_pattern", "use_mla", "num_nextn_predict_layers"),
        ]
    ),
}
_ACTIVATIONS = ("silu", "swish", "swiglu")
_HEAD_NORM_FIELDS = ("qk_norm", "use_qk_norm", "qk_layernorm", "use_qk_layernorm")
_RMS_NORMS = ("rms", "rms_norm", "rmsnorm")
_READ_ROPE = frozenset(
    [
        *("rope_type", "type", "rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings"),
        *("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
        *("attention_factor", "truncate", "finetuned"),
    ]
)
_CHANGING_ROPE = ("mrope_section", "mrope_interleaved", "llama_4_scaling_beta", "short_factor", "long_factor", "alpha")


def check_fields(config: Mapping[str, Any], family: str, origin: str) -> tuple[str, ...]:
    """Notes about fields that bitsmith does not know, and about a model_type of another family.

    config: a parsed config.json; family: key of `ARCHITECTURES`
    Raises UnsupportedError for a field that changes the computation in some family and that this family does not read.
    """
    known = _READ | _HARMLESS | _read_by(family)
    unknown = []
    for name, value in config.items():
        if name in known or name.startswith("_") or (name == "sliding_window" and _window_off(config)):
            continue
        if is_neutral(value) and not (value is False and _CHANGING.get(name) is True):
            continue
        if name in _HEAD_NORM_FIELDS and value is True and FAMILIES[family].qk_norm:
            continue
        if name not in _CHANGING:
            unknown.append(name)
        elif not _without_effect(name, value):
            raise _refused(f"{origin}: {name} = {str(value)[:60]}", family)
    unknown += _unknown_rope(config, family, origin)
    noted = _other_type(config.get("model_type"), family)
    return (*noted, *((f"fields that bitsmith does not know, and ignores: {', '.join(unknown)}",) if unknown else ()))


def _other_type(found: object, family: str) -> tuple[str, ...]:
    """The note that the class and the model_type of a configuration are of different families."""
    if found in (None, family) or (found, family) == ("mistral", "ministral3"):  # Mistral Small 3.1 is of both
        return ()
    return (
        f"the class in config.json is of {family} models, but model_type is {str(found)[:40]!r}; it is read by its "
        "class, while transformers goes by model_type",
    )


def _read_by(name: str) -> frozenset[str]:
    """The fields that a family reads beside the usual ones."""
    family = FAMILIES[name]
    row = family.decoder
    assert row is not None
    own = {*row.fields, *row.numbers, *_WINDOW_FIELDS.get(family.window, ())}
    own |= {"rope_local_base_freq"} if row.local_rope == "theta" else set()
    own |= {"query_pre_attn_scalar"} if row.query_scalar else set()
    own |= {*row.experts.count, row.experts.used, row.experts.width, row.experts.shared} if row.experts else set()
    return frozenset(own)


def _window_off(config: Mapping[str, Any]) -> bool:
    """Whether the attention window of a family without one is turned off, or as long as the context."""
    window, context = config.get("sliding_window"), config.get("max_position_embeddings")
    covers = isinstance(window, int) and isinstance(context, int) and window >= context
    return covers or config.get("use_sliding_window") is False


def _without_effect(name: str, value: object) -> bool:
    if name in ("hidden_activation", "activation_function", "activation"):
        return value in _ACTIVATIONS
    if name in ("norm_type", "layer_norm_type"):
        return value in _RMS_NORMS
    if name == "layer_types":
        return isinstance(value, list) and all(kind == "full_attention" for kind in value)
    return bool(value == _CHANGING[name])


def _unknown_rope(config: Mapping[str, Any], family: str, origin: str) -> list[str]:
    values = config.get("rope_scaling") or config.get("rope_parameters")
    unknown = []
    nested = [each for each in values.values() if isinstance(each, dict)] if isinstance(values, dict) else []
    pairs = [pair for part in [values, *nested] if isinstance(part, dict) for pair in part.items()]
    row = FAMILIES[family].decoder
    own = () if row is None else row.rope_fields
    for name, value in pairs:
        if name in _READ_ROPE or name in own or is_neutral(value) or isinstance(value, dict):
            continue
        if name in _CHANGING_ROPE:
            raise _refused(f"{origin}: rope_scaling.{name} = {str(value)[:60]}", family)
        unknown.append(f"rope_scaling.{name}")
    return unknown


def _refused(field: str, family: str) -> UnsupportedError:
    return UnsupportedError(
        f"{field} changes the computation, and bitsmith does not know it for {family} models. Use the model's own "
        "program. If the model does not use the field, remove it from config.json."
    )
