"""Model families as data: one table. A new family is one row.

Plans know every family. Families with a `Decoder` can be converted, calibrated and run as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bitsmith.models.arch.family import (
    AFTER,
    BOTH,
    DENSE,
    GLM4_NORMS,
    ONE,
    QKV,
    SEED_NORMS,
    Decoder,
    ExpertRow,
    Family,
)

_LAYER_NORM = Family(
    "", norm_bias=True, gated=False, qkv_bias=True, output_bias=True, mlp_bias=True, tied=True
)  # decoders from before 2023
_GEMMA3_DEFAULTS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208}
_GEMMA3_DEFAULTS |= {"max_position_embeddings": 131072}

_LLAMA = Decoder(("LlamaForCausalLM", "LLaMAForCausalLM"), permuted=True, gguf_biases=DENSE, optional_biases="all")
_MISTRAL = Decoder(("MistralForCausalLM",), permuted=True, gguf_biases=DENSE, context=131072, kv_heads=8, window=4096)
_QWEN2 = Decoder(("Qwen2ForCausalLM",), context=32768, kv_heads=32, window=4096)
_QWEN3 = Decoder(
    ("Qwen3ForCausalLM",), context=32768, kv_heads=32, head_dim=128, window=4096, optional_biases="attention"
)

_SMOLLM3 = Decoder(
    ("SmolLM3ForCausalLM",),
    permuted=True,
    optional_biases="all",
    context=32768,
    kv_heads=4,
    theta=2e6,
    rotates="no_rope_layers",
    fields=("no_rope_layers", "no_rope_layer_interval"),
)
_OLMO2 = Decoder(("Olmo2ForCausalLM",), gguf_biases=(), optional_biases="attention", eps=1e-5, ignores_window=False)
_OLMO3 = replace(
    _OLMO2,
    gguf_keys=("rope.freq_base_swa",),
    hf_classes=("Olmo3ForCausalLM",),
    window=4096,
    theta=500000.0,
    every=4,
    local_rope="unscaled",
)
_GRANITE = Decoder(
    ("GraniteForCausalLM",),
    permuted=True,
    gguf_biases=DENSE,
    optional_biases="all",
    numbers={
        "embedding_multiplier": ("embedding_scale", 1.0),
        "residual_multiplier": ("residual_scale", 1.0),
        "attention_multiplier": ("attention_scale", 1.0),
        "logits_scaling": ("logit_divisor", 1.0),
    },
    gguf_keys=("attention.scale", "embedding_scale", "residual_scale", "logit_scale"),
)
_SEED_OSS = Decoder(
    ("SeedOssForCausalLM",),
    optional_biases="all",
    attention_bias=True,
    output_bias="attention_out_bias",
    context=524288,
    kv_heads=8,
    head_dim=128,
    fields=("attention_out_bias",),
)
_HUNYUAN = Decoder(
    ("HunYuanDenseV1ForCausalLM",),
    optional_biases="attention",
    eps=1e-5,
    norm_after_rotation=True,
    names={"self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"},
    rope_fields=("alpha",),
    fields=("attention_head_dim", "cla_share_factor"),
)
_ERNIE = Decoder(
    ("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    interleaved=True,
    optional_biases="use_bias",
    context=131072,
    kv_heads=2,
    head_dim=128,
    theta=500000.0,
    eps=1e-5,
)
_EXAONE4 = Decoder(
    ("Exaone4ForCausalLM",),
    gguf_biases=(),
    kv_heads=32,
    window=4096,
    eps=1e-5,
    rotates="windowed",
    every=4,
    ignores_window=False,
)
_GLM4 = Decoder(
    ("Glm4ForCausalLM",),
    interleaved=True,
    optional_biases="attention",
    attention_bias=True,
    output_bias="",
    context=131072,
    kv_heads=2,
    head_dim=128,
    eps=1.5625e-7,
    partial=0.5,
    rope_fields=("partial_rotary_factor",),
    names={"mlp.gate_up_proj": "ffn_up"},
)
_GEMMA2 = Decoder(
    ("Gemma2ForCausalLM",),
    gguf_biases=(),
    context=8192,
    kv_heads=4,
    head_dim=256,
    window=4096,
    every=2,
    activation="gelu_tanh",
    norm_offset=True,
    embedding_root=True,
    numbers={"attn_logit_softcapping": ("attention_softcap", 50.0), "final_logit_softcapping": ("logit_softcap", 30.0)},
    query_scalar=256,
    fields=("hidden_activation", "cache_implementation"),
    gguf_keys=("attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base_swa"),
    ignores_window=False,
    implied_window=True,
    fixed_scale=True,
)
_GEMMA3 = replace(
    _GEMMA2,
    hf_classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    context=131072,
    theta=1e6,
    local_rope="theta",
    every=6,
    numbers={"final_logit_softcapping": ("logit_softcap", 0.0)},
    fields=("hidden_activation", "cache_implementation", "rope_local_base_freq"),
)
_GEMMA4 = Decoder(
    ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    gguf_biases=(),
    optional_biases="attention",
    context=131072,
    kv_heads=4,
    head_dim=256,
    window=512,
    theta=1e6,
    local_rope="theta",
    rope_fields=("partial_rotary_factor",),
    every=6,
    activation="gelu_tanh",
    embedding_root=True,
    numbers={"final_logit_softcapping": ("logit_softcap", 0.0)},
    score_scale=1.0,
    value_norm=True,
    layer_scale=True,
    layer_facts=True,
    experts=ExpertRow(
        count=("num_experts",),
        used="top_k_experts",
        switch="enable_moe_block",
        normalize=True,
        beside=True,
        fused=True,
        scaled=True,
    ),
    names={
        "per_layer_input_gate": "inp_gate",
        "per_layer_projection": "proj",
        "post_per_layer_input_norm": "post_norm",
        "post_feedforward_layernorm_1": "post_ffw_norm_1",
        "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
        "post_feedforward_layernorm_2": "post_ffw_norm_2",
        "router.proj": "ffn_gate_inp",
    },
    bare={
        "layer_scalar": "layer_output_scale.weight",
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
        "experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
    },
    fields=(
        *("hidden_activation", "global_head_dim", "num_global_key_value_heads", "per_layer_config", "attention_k_eq_v"),
        *("num_kv_shared_layers", "use_double_wide_mlp", "hidden_size_per_layer_input", "vocab_size_per_layer_input"),
        *("enable_moe_block", "use_bidirectional_attention"),
    ),
    gguf_keys=(
        *("final_logit_softcapping", "rope.freq_base_swa", "rope.dimension_count_swa", "attention.key_length_swa"),
        *("attention.value_length_swa", "attention.shared_kv_layers", "embedding_length_per_layer_input"),
        *("expert_count", "expert_used_count", "expert_feed_forward_length", "attention.sliding_window_pattern"),
    ),
    ignores_window=False,
    tokenizer="gemma4",
)
_PHI3 = Decoder(
    ("Phi3ForCausalLM",),
    gguf_biases=(),
    context=4096,
    eps=1e-5,
    names={"mlp.gate_up_proj": "ffn_up"},
    rope_fields=("partial_rotary_factor", "short_factor", "long_factor"),
    fields=("resid_pdrop", "embd_pdrop"),
    gguf_keys=("rope.scaling.original_context_length=4096", "attention.sliding_window=0"),
)
_BETAS = ("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow")
_YARN: Mapping[str, Any] = {"rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0}
_MINISTRAL3 = Decoder(
    ("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
    permuted=True,
    gguf_biases=DENSE,
    context=262144,
    kv_heads=8,
    head_dim=128,
    theta=1e6,
    eps=1e-5,
    rope={
        **_YARN,
        **{"rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384},
        **{"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
    },
    rope_fields=("llama_4_scaling_beta", "max_position_embeddings"),
    gguf_keys=("attention.temperature_scale", "rope.scaling.yarn_log_multiplier", *_BETAS),
)
_ROUTER_TRAINING = ("router_aux_loss_coef", "output_router_logits", "router_jitter_noise")
_MOE_NAMES = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
_MOE_KEYS = ("expert_count", "expert_used_count")
_QWEN3_MOE = Decoder(
    ("Qwen3MoeForCausalLM",),
    optional_biases="attention",
    context=32768,
    kv_heads=4,
    window=4096,
    experts=ExpertRow(),
    names=_MOE_NAMES,
    fields=("mlp_only_layers", "decoder_sparse_step", "norm_topk_prob", *_ROUTER_TRAINING),
    gguf_keys=(*_MOE_KEYS, "expert_feed_forward_length"),
)
_MIXTRAL = replace(
    _MISTRAL,
    hf_classes=("MixtralForCausalLM",),
    theta=1e6,
    eps=1e-5,
    experts=ExpertRow(width="intermediate_size", normalize=True),
    names={
        "block_sparse_moe.gate": "ffn_gate_inp",
        "block_sparse_moe.experts.w1": "ffn_gate_exps",
        "block_sparse_moe.experts.w3": "ffn_up_exps",
        "block_sparse_moe.experts.w2": "ffn_down_exps",
    },
    fields=_ROUTER_TRAINING,
    gguf_keys=_MOE_KEYS,
)
_OLMOE = Decoder(
    ("OlmoeForCausalLM",),
    gguf_biases=(),
    context=4096,
    eps=1e-5,
    experts=ExpertRow(width="intermediate_size", gguf_normalize=False),
    names=_MOE_NAMES,
    fields=("norm_topk_prob", *_ROUTER_TRAINING),
    gguf_keys=_MOE_KEYS,
)
_GPT_OSS = Decoder(
    ("GptOssForCausalLM",),
    gguf_biases=(*QKV, "attn_output"),
    optional_biases="attention",
    attention_bias=True,
    context=131072,
    kv_heads=8,
    head_dim=64,
    window=128,
    theta=150000.0,
    eps=1e-5,
    rope={**_YARN, "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096},
    rope_fields=("truncate",),
    every=2,
    activation="clamped",
    router="chosen",
    experts=ExpertRow(width="intermediate_size", normalize=True, interleaved=True),
    names={"mlp.router": "ffn_gate_inp"},
    fields=("swiglu_limit", "swiglu_alpha", "experts_per_token", "initial_context_length", *_ROUTER_TRAINING),
    gguf_keys=(*_MOE_KEYS, "expert_feed_forward_length"),
    ignores_window=False,
    implied_window=True,
)
_QWEN3_VL = replace(
    _QWEN3,
    hf_classes=("Qwen3VLForConditionalGeneration",),
    context=128000,
    window=None,
    theta=500000.0,
    rope_fields=("mrope_section", "mrope_interleaved"),  # of one text, all sections have the same positions
    gguf_keys=("rope.dimension_sections", "n_deepstack_layers"),
    wrapped=True,
)
_DELTA_FIELDS = (
    *("layer_types", "full_attention_interval", "attn_output_gate", "mamba_ssm_dtype", "linear_conv_kernel_dim"),
    *("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim"),
    *("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"),
)
_DELTA_KEYS = (
    *("ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size"),
    *("attention.recurrent_layers", "full_attention_interval", "nextn_predict_layers"),
)
_DELTA_NAMES = {
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_qkvz": "ssm_in",  # GGUF's name of old files
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.out_proj": "ssm_out",
    "linear_attn.norm": "ssm_norm",
}
_QWEN35 = Decoder(
    ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
    gguf_biases=(),
    optional_biases="attention",
    context=32768,
    kv_heads=4,
    head_dim=256,
    partial=0.25,
    rope_fields=("partial_rotary_factor", "mrope_section", "mrope_interleaved"),
    norm_offset=True,
    names=_DELTA_NAMES,
    fields=(*_DELTA_FIELDS, "mlp_only_layers"),
    gguf_keys=("rope.dimension_sections", *_DELTA_KEYS),
    sections=(11, 11, 10),
)
_SHARED_NAMES = {
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
_SHARED_KEYS = (*_MOE_KEYS, "expert_feed_forward_length", "expert_shared_feed_forward_length")
_QWEN35_MOE = replace(
    _QWEN35,
    hf_classes=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
    kv_heads=2,
    experts=ExpertRow(normalize=True, shared="shared_expert_intermediate_size"),
    names={**_DELTA_NAMES, **_MOE_NAMES, **_SHARED_NAMES},
    fields=(*_QWEN35.fields, *_ROUTER_TRAINING),
    gguf_keys=(*_QWEN35.gguf_keys, *_SHARED_KEYS),
)
_QWEN3_NEXT = replace(
    _QWEN35_MOE,
    hf_classes=("Qwen3NextForCausalLM",),
    rope_fields=("partial_rotary_factor",),
    experts=ExpertRow(normalize_default=True, shared="shared_expert_intermediate_size"),
    fields=(*_QWEN35_MOE.fields, "decoder_sparse_step", "norm_topk_prob"),
    gguf_keys=(*_DELTA_KEYS, *_SHARED_KEYS),
)

_QWEN3_VL_MOE = replace(
    _QWEN3_MOE,
    hf_classes=("Qwen3VLMoeForConditionalGeneration",),
    context=128000,
    kv_heads=16,
    window=None,
    theta=500000.0,
    experts=ExpertRow(normalize=True),
    rope_fields=_QWEN3_VL.rope_fields,
    gguf_keys=(*_QWEN3_MOE.gguf_keys, *_QWEN3_VL.gguf_keys),
    wrapped=True,
)

FAMILIES: Mapping[str, Family] = {  # by config.json's model_type
    "llama": Family("llama", decoder=_LLAMA),
    "mistral": Family("llama", window="all", decoder=_MISTRAL),
    "mixtral": Family("llama", window="all", decoder=_MIXTRAL),
    "ministral3": Family("mistral3", window="all", decoder=_MINISTRAL3),
    "qwen2": Family("qwen2", qkv_bias=True, output_bias=False, window="by_field", decoder=_QWEN2),
    "qwen2_moe": Family("qwen2moe", qkv_bias=True, output_bias=False, window="by_field"),
    "qwen3": Family("qwen3", qk_norm="head", window="by_field", decoder=_QWEN3),
    "qwen3_vl_text": Family("qwen3vl", qk_norm="head", decoder=_QWEN3_VL),
    "qwen3_vl_moe_text": Family("qwen3vlmoe", qk_norm="head", decoder=_QWEN3_VL_MOE),
    "qwen3_moe": Family("qwen3moe", qk_norm="head", window="by_flag", decoder=_QWEN3_MOE),
    "qwen3_next": Family(
        "qwen3next", norms=SEED_NORMS, qk_norm="head", output_gate=True, delta="fused", decoder=_QWEN3_NEXT
    ),
    "qwen3_5_text": Family(
        "qwen35", norms=SEED_NORMS, qk_norm="head", output_gate=True, delta="apart", decoder=_QWEN35
    ),
    "qwen3_5_moe_text": Family(
        "qwen35moe", norms=SEED_NORMS, qk_norm="head", output_gate=True, delta="apart", decoder=_QWEN35_MOE
    ),
    "gemma": Family("gemma", tied=True),
    "gemma2": Family("gemma2", norms=BOTH, tied=True, window="alternating", decoder=_GEMMA2),
    "gemma3_text": Family(
        "gemma3",
        norms=BOTH,
        qk_norm="head",
        tied=True,
        window="pattern",
        defaults=_GEMMA3_DEFAULTS,
        decoder=_GEMMA3,
    ),
    "gemma4_text": Family(
        "gemma4",
        norms=BOTH,
        qk_norm="head",
        tied=True,
        window="pattern",
        defaults={"num_attention_heads": 8, "vocab_size": 262144, "layer_width": 256},
        decoder=_GEMMA4,
    ),
    "phi3": Family("phi3", fused_qkv=True, fused_gate=True, window="all", decoder=_PHI3),
    "olmo2": Family("olmo2", norms=AFTER, qk_norm="whole", decoder=_OLMO2),
    "olmo3": Family("olmo2", norms=AFTER, qk_norm="whole", window="pattern", decoder=_OLMO3),
    "olmoe": Family("olmoe", qk_norm="whole", decoder=_OLMOE),
    "smollm3": Family("smollm3", tied=True, decoder=_SMOLLM3),
    "granite": Family("granite", decoder=_GRANITE),
    "seed_oss": Family("seed_oss", norms=SEED_NORMS, decoder=_SEED_OSS),
    "hunyuan_v1_dense": Family("hunyuan-dense", qk_norm="head", decoder=_HUNYUAN),
    "ernie4_5": Family("ernie4_5", tied=True, decoder=_ERNIE),
    "exaone4": Family("exaone4", norms=AFTER, qk_norm="head", window="pattern", decoder=_EXAONE4),
    "glm4": Family("glm4", norms=GLM4_NORMS, fused_gate=True, decoder=_GLM4),
    "cohere": Family("command-r", norms=ONE, tied=True),
    "falcon": Family("falcon", norms=ONE, norm_bias=True, gated=False, fused_qkv=True, tied=True, context=2048),
    "gpt2": replace(_LAYER_NORM, gguf="gpt2", fused_qkv=True, positions=0),
    "opt": replace(_LAYER_NORM, gguf="opt", positions=2),
    "bloom": replace(_LAYER_NORM, gguf="bloom", fused_qkv=True, embedding_norm=True, context=2048),
    "deepseek_v2": Family("deepseek2"),
    "deepseek_v3": Family("deepseek2", score_bias=True),
    "kimi_k2": Family("deepseek2", score_bias=True),
    "gpt_oss": Family(
        "gpt-oss",
        decoder=_GPT_OSS,
        norms=SEED_NORMS,
        qkv_bias=True,
        output_bias=True,
        window="alternating",
        sinks=True,
        expert_bias=True,
    ),
    "glm4_moe": Family("glm4moe", output_bias=False, score_bias=True),
}
