"""Model families as data: one table. A new family is one row.

Plans know every family. Families with a `Decoder` can be converted, calibrated and run as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

_QKV = ("attn_q", "attn_k", "attn_v")
_DENSE = (*_QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Norms:
    """The norms of a layer: GGUF's name of each, and Hugging Face's; "" where there is none.

    They stand before and after the attention, and before and after the MLP.
    """

    before_attention: str = "attn_norm"
    after_attention: str = ""
    before_mlp: str = "ffn_norm"
    after_mlp: str = ""
    hf: tuple[str, str, str, str] = ("input_layernorm", "", "post_attention_layernorm", "")

    @property
    def names(self) -> tuple[str, ...]:
        """GGUF's names of those that exist, in the order of computation."""
        return tuple(name for name in self.places if name)

    @property
    def hf_names(self) -> dict[str, str]:
        """Hugging Face's name within a layer -> GGUF's."""
        return {theirs: ours for theirs, ours in zip(self.hf, self.places, strict=True) if ours}

    @property
    def places(self) -> tuple[str, str, str, str]:
        """GGUF's names in the order of the fields, "" where there is no norm."""
        return self.before_attention, self.after_attention, self.before_mlp, self.after_mlp


BEFORE = Norms()
ONE = Norms(before_mlp="")  # attention and MLP run in parallel
AFTER = Norms(
    *("", "post_attention_norm", "", "post_ffw_norm"),
    hf=("", "post_attention_layernorm", "", "post_feedforward_layernorm"),
)
BOTH = Norms(
    *("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
    hf=("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
_GLM4_NORMS = replace(
    BOTH,
    hf=("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
)
_SEED_NORMS = replace(BEFORE, before_mlp="post_attention_norm")  # llama.cpp's name of the norm before the MLP


@dataclass(frozen=True)
class ExpertRow:
    """How a family's config.json describes its experts.

    count: names that the field may have
    used, width: names of the fields
    normalize: whether the weights of the chosen experts are divided by their sum; None if norm_topk_prob says it
    gguf_normalize: the same in llama.cpp's code, which reads no key for it
    interleaved: True if Hugging Face stores one stack of gate and up, row by row in turn, as gpt-oss does
    switch: the field that says whether a model has experts; "" if all models of the family have them
    beside: True if the experts stand beside the MLP, with norms of their own
    fused: True if there is one stack of gate and up, the gate's rows first
    scaled: True if the router norms its input and multiplies it by a vector, and each expert's output has a multiplier
    """

    count: tuple[str, ...] = ("num_experts", "num_local_experts")
    used: str = "num_experts_per_tok"
    width: str = "moe_intermediate_size"
    normalize: bool | None = None
    gguf_normalize: bool = True
    interleaved: bool = False
    switch: str = ""
    beside: bool = False
    fused: bool = False
    scaled: bool = False


@dataclass(frozen=True)
class Decoder:
    """What converting and running a family needs beside the rest of its row.

    hf_classes: class names in config.json's "architectures"; those after the first are wrappers and old names
    permuted: True if GGUF orders the rows of q and k so that rotary pairs are neighbours (interleaved rope)
    interleaved: True if Hugging Face has them as neighbours already
    gguf_biases: linears for which llama.cpp's loader of this family reads a bias
    optional_biases: whether the fields attention_bias and mlp_bias decide about biases: "" (neither), "attention",
        "all"; "use_bias" if this one field decides about all
    attention_bias: value of attention_bias if config.json does not say
    output_bias: the field that decides about the output projection's bias
    context, kv_heads, head_dim, window: transformers' defaults for fields that are missing in config.json. None if the
        default is computed (kv_heads = heads, head_dim = hidden / heads) or if there is none (window)
    theta, eps: defaults of rope_theta and rms_norm_eps
    partial: default of partial_rotary_factor
    local_rope: rotation of layers with a window, where it differs: "theta" (rope_local_base_freq), "unscaled"
    rope_fields: further fields of the rotation that this family reads: "partial_rotary_factor", "alpha",
        "llama_4_scaling_beta"
    rotates: which layers rotate: "all"; "no_rope_layers" (the field of this name, else all but every fourth);
        "windowed" (those with a window, if there is one)
    every: one layer of so many sees everything, if config.json gives no layer_types
    activation: "silu" or "gelu_tanh", of the gate
    norm_offset: True if Hugging Face stores norms without the 1 that is added to them
    norm_after_rotation: True if q and k are normed after their rotation
    embedding_root: True if embeddings are multiplied by the root of their width
    numbers: fields of config.json that give an attribute of `ModelConfig`: its name, and the default
    query_scalar: default of query_pre_attn_scalar, whose inverse root multiplies scores; 0 if it is not read
    score_scale: multiplier of scores in every model of the family; 0 for 1 / sqrt(head_dim)
    value_norm: True if values are normed, without a weight
    layer_scale: True if each layer's output is multiplied by a number
    layer_facts: True if head sizes, shared caches and embeddings of layers are read, see `hf_layers`
    experts: None for dense models
    router: how scores become weights: "softmax" over all experts, or over those that are "chosen"
    names: Hugging Face's name within a layer -> GGUF's, where they differ from those of Llama
    bare: names of Hugging Face's tensors within a layer that end without ".weight" -> GGUF's with their endings
    fields: further fields of config.json that this family reads
    gguf_keys: further keys that llama.cpp reads for this family, without "{arch}."
    wrapped: True if transformers has the family only inside of a model for images, so that no folder can be made of it
    ignores_window: True if llama.cpp has no sliding window for this family
    implied_window: True if GGUF files name the layers with a window only where one of `every` is not the rule
    fixed_scale: True if llama.cpp computes the scale of scores itself, and reads no key for it
    tokenizer: GGUF's name of the family's tokenizer, if that is BPE with byte fallback
    """

    hf_classes: tuple[str, ...]
    permuted: bool = False
    interleaved: bool = False
    gguf_biases: tuple[str, ...] = _QKV
    optional_biases: Literal["", "attention", "all", "use_bias"] = ""
    attention_bias: bool = False
    output_bias: str = "attention_bias"
    context: int = 2048
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    theta: float = 10000.0
    eps: float = 1e-6
    partial: float = 1.0
    local_rope: Literal["", "theta", "unscaled"] = ""
    rope_fields: tuple[str, ...] = ()
    rotates: Literal["all", "no_rope_layers", "windowed"] = "all"
    every: int = 0
    activation: str = "silu"
    norm_offset: bool = False
    norm_after_rotation: bool = False
    embedding_root: bool = False
    numbers: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    query_scalar: int = 0
    score_scale: float = 0.0
    value_norm: bool = False
    layer_scale: bool = False
    layer_facts: bool = False
    experts: ExpertRow | None = None
    router: Literal["softmax", "chosen"] = "softmax"
    names: Mapping[str, str] = field(default_factory=dict)
    bare: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    gguf_keys: tuple[str, ...] = ()
    wrapped: bool = False
    ignores_window: bool = True
    implied_window: bool = False
    fixed_scale: bool = False
    tokenizer: Literal["llama", "gemma4"] = "llama"


@dataclass(frozen=True)
class Family:
    """What the config.json of a family does not say.

    gguf: GGUF's general.architecture
    norms: the norms of a layer; `ONE` if attention and MLP run in parallel
    norm_bias: True if norms have a bias (LayerNorm)
    gated: True if the MLP has a gate beside its up projection
    fused_qkv, fused_gate: True if these matrices are stored as one
    qkv_bias, output_bias, mlp_bias: whether these linears have a bias; None if attention_bias or mlp_bias decides
    qk_norm: norms of q and k, over each head or over the whole width
    tied: default of tie_word_embeddings
    window: which layers have a window, if config.json gives a window and no layer_types
    positions: rows of a learned position embedding beyond the context; None if there is no such embedding
    embedding_norm: True if there is a norm after the embedding
    sinks: True if each head has a learned attention sink
    expert_bias: True if experts and their router have biases
    score_bias: True if a bias is added to the scores that choose experts
    widening: width of the MLP divided by the hidden size, if config.json does not say
    context: default context, in tokens
    defaults: transformers' defaults of further fields
    decoder: None if bitsmith cannot convert and run the family
    """

    gguf: str
    norms: Norms = BEFORE
    norm_bias: bool = False
    gated: bool = True
    fused_qkv: bool = False
    fused_gate: bool = False
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = None
    qk_norm: Literal["", "head", "whole"] = ""
    tied: bool = False
    window: Literal["never", "all", "alternating", "pattern", "by_field"] = "never"
    positions: int | None = None
    embedding_norm: bool = False
    sinks: bool = False
    expert_bias: bool = False
    score_bias: bool = False
    widening: int = 4
    context: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    decoder: Decoder | None = None


_LAYER_NORM = Family(
    "", norm_bias=True, gated=False, qkv_bias=True, output_bias=True, mlp_bias=True, tied=True
)  # decoders from before 2023
_GEMMA3_DEFAULTS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208}
_GEMMA3_DEFAULTS |= {"max_position_embeddings": 131072}

_LLAMA = Decoder(("LlamaForCausalLM", "LLaMAForCausalLM"), permuted=True, gguf_biases=_DENSE, optional_biases="all")
_MISTRAL = Decoder(("MistralForCausalLM",), permuted=True, gguf_biases=_DENSE, context=131072, kv_heads=8, window=4096)
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
    gguf_biases=_DENSE,
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
_MINISTRAL3 = Decoder(
    ("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
    permuted=True,
    gguf_biases=_DENSE,
    context=262144,
    kv_heads=8,
    head_dim=128,
    theta=1e6,
    eps=1e-5,
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
    gguf_biases=(*_QKV, "attn_output"),
    optional_biases="attention",
    attention_bias=True,
    context=131072,
    kv_heads=8,
    head_dim=64,
    window=128,
    theta=150000.0,
    eps=1e-5,
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
    "qwen3_moe": Family("qwen3moe", qk_norm="head", window="by_field", decoder=_QWEN3_MOE),
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
    "seed_oss": Family("seed_oss", norms=_SEED_NORMS, decoder=_SEED_OSS),
    "hunyuan_v1_dense": Family("hunyuan-dense", qk_norm="head", decoder=_HUNYUAN),
    "ernie4_5": Family("ernie4_5", tied=True, decoder=_ERNIE),
    "exaone4": Family("exaone4", norms=AFTER, qk_norm="head", window="pattern", decoder=_EXAONE4),
    "glm4": Family("glm4", norms=_GLM4_NORMS, fused_gate=True, decoder=_GLM4),
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
        norms=_SEED_NORMS,
        qkv_bias=True,
        output_bias=True,
        window="alternating",
        sinks=True,
        expert_bias=True,
    ),
    "glm4_moe": Family("glm4moe", output_bias=False, score_bias=True),
}
