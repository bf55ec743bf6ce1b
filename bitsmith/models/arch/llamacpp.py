"""What llama.cpp (build 11434) reads of a GGUF file of the architectures that we write, and what it ignores."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.fields import is_neutral
from bitsmith.models.arch.spec import ARCHITECTURES

MAX_LAYERS = 512  # llama-hparams.h, LLAMA_MAX_LAYERS; llama.cpp aborts on more
SQUARE_ATTENTION = frozenset({"qwen2"})  # attn_q must be as wide as the hidden states (src/models/qwen2.cpp)
DEFAULT_END = {"gpt2": 11, "llama": 2}  # by tokenizer.ggml.model: the end token if the file names none
LOGIT_CAPS = {"gemma4": 30.0}  # llama.cpp's cap of logits for files without the key, where our row's default is another
USUAL_BETAS = (32.0, 1.0)  # YaRN's beta_fast and beta_slow; our architectures always get these

# keys after "{arch}." that llama.cpp reads for llama, qwen2 and qwen3 (llama-model.cpp, src/models/*.cpp)
READ: frozenset[str] = frozenset(
    [
        *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"),
        *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
        *("attention.key_length", "attention.value_length"),
        *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor"),
        *("rope.scaling.original_context_length", "rope.scaling.attn_factor"),
    ]
)
# keys that our decoder reads and llama.cpp ignores in these architectures: what llama.cpp does instead
IGNORED: Mapping[str, str] = {
    "rope.scaling.yarn_beta_fast": "llama.cpp takes 32 and 1 for YaRN's beta_fast and beta_slow",
    "rope.scaling.yarn_beta_slow": "llama.cpp takes 32 and 1 for YaRN's beta_fast and beta_slow",
    "attention.sliding_window": "llama.cpp attends to all tokens",
    "attention.sliding_window_pattern": "llama.cpp attends to all tokens",
}
# keys that change no result of a decoder of these architectures
_HARMLESS = frozenset(
    [
        *("rope.scaling.finetuned", "tensor_data_layout", "attention.layer_norm_epsilon", "expert_used_count"),
        *("expert_gating_func", "expert_weights_norm", "expert_feed_forward_length", "pooling_type"),
        *("classifier.output_labels", "classifier.pooling_type", "embedding_length_out", "leading_dense_block_count"),
    ]
)
# keys that change the computation in some architecture: the value without effect, beside 0 and false
_CHANGING: Mapping[str, Any] = {
    "attention.causal": True,
    **dict.fromkeys(
        ("logit_scale", "residual_scale", "embedding_scale", "rope.scaling.yarn_attn_factor", "rope.scaling.alpha"), 1
    ),
    "rope.scaling.yarn_ext_factor": -1,
    **dict.fromkeys(
        [
            *("attn_logit_softcapping", "final_logit_softcapping", "attention.scale", "attention.output_scale"),
            *("attention.value_scale", "attention.clamp_kqv", "attention.max_alibi_bias", "use_parallel_residual"),
            *("attention.temperature_length", "attention.temperature_scale", "rope.scaling.yarn_log_multiplier"),
            *("rope.dimension_sections", "rope.freq_base_swa", "rope.dimension_count_swa", "attention.key_length_swa"),
            *("attention.value_length_swa", "attention.shared_kv_layers", "attention.kv_lora_rank"),
            *("attention.q_lora_rank", "expert_count", "expert_shared_count", "nextn_predict_layers"),
            *("swiglu_clamp_exp", "num_loops", "full_attention_interval", "attention.rope_pattern"),
            *("rescale_every_n_layers", "hidden_activation", "ssm.state_size"),
        ]
    ),
}


def check_keys(keys: Mapping[str, Any], arch: str, origin: str, own: Collection[str] = ()) -> tuple[str, ...]:
    """Notes about keys of `arch` that bitsmith does not know.

    keys: plain values by key
    own: further keys that this family reads, without "{arch}."
    Raises UnsupportedError for a key that changes the computation in some architecture and that bitsmith does not read.
    """
    unknown = []
    for key, value in keys.items():
        name = key.removeprefix(f"{arch}.")
        if (
            name == key
            or name in own
            or name in READ
            or name in IGNORED
            or name in _HARMLESS
            or _says_nothing(name, value)
        ):
            continue
        if name not in _CHANGING:
            unknown.append(key)
        elif value != _CHANGING[name]:
            raise UnsupportedError(
                f"{origin}: {key} = {str(value)[:60]} changes the computation, and bitsmith does not know it for "
                f"{arch} models; use a file without this key, or run this one in llama.cpp."
            )
    return (f"keys that bitsmith does not know, and ignores: {', '.join(unknown)}",) if unknown else ()


def _says_nothing(name: str, value: object) -> bool:
    return is_neutral(value) and not (value is False and _CHANGING.get(name) is True)


def usual_unrotated(layers: int) -> tuple[int, ...]:
    """The layers that llama.cpp does not rotate in SmolLM3: every fourth (src/models/smollm3.cpp)."""
    return tuple(layer for layer in range(layers) if not (layer + 1) % 4)


def gemma_scale(config: ModelConfig) -> float:
    """The multiplier of scores that llama.cpp computes for Gemma 2 and 3 (src/models/gemma2.cpp, gemma3.cpp)."""
    largest = config.layers == {"gemma2": 46, "gemma3_text": 62}.get(config.arch)
    return float((config.hidden // config.heads if largest else config.head_dim) ** -0.5)


def reads_rope_freqs(arch: str) -> bool:
    """Whether llama.cpp reads rope_freqs.weight in models of a general.architecture. In others it refuses the file."""
    return arch in ("llama", "mistral3", "granite", "exaone4", "gemma4")


def differences(config: ModelConfig) -> tuple[str, ...]:
    """How llama.cpp's results on a GGUF file of `config` differ from the original model's, a sentence each."""
    spec = ARCHITECTURES[config.arch]
    arch, row = spec.gguf, spec.decoder
    found = []
    if 0 < config.window < config.context and (row.ignores_window or (arch == "exaone4" and config.layers != 64)):
        found.append(
            f"the model attends only to the last {config.window} tokens, but llama.cpp has no sliding window for "
            f"{arch} files. For longer texts, llama.cpp's results differ from the original"
        )
    if row.fixed_scale and abs(config.attention_scale / gemma_scale(config) - 1) > 1e-6:
        found.append(
            f"the model multiplies attention scores by {config.attention_scale:g}, but llama.cpp computes "
            f"{gemma_scale(config):g} for {arch} files: its results differ from the original's on every text"
        )
    experts = row.experts if row.experts is not None and row.experts.normalize is None else None
    if config.experts is not None and experts is not None and config.experts.normalize != experts.gguf_normalize:
        does, theirs = ("divides", "does not") if config.experts.normalize else ("does not divide", "does")
        found.append(
            f"the model {does} the weights of the chosen experts by their sum, but llama.cpp {theirs} for {arch} "
            "files: its results differ from the original's on every text"
        )
    if config.rope.scaling == "longrope":
        found.append(
            f"the model has other rotations for texts of more than {config.rope.original_context} tokens, but "
            "llama.cpp takes them by the size of its context: give it a context as long as the texts"
        )
    if config.rope.scaling == "yarn" and not config.rope.truncate:
        found.append(
            "the model's YaRN scaling does not round the ends of its ramp (truncate false), but llama.cpp does: its "
            "results differ a little from the original's on every text"
        )
    betas = (config.rope.beta_fast, config.rope.beta_slow)
    reads = "rope.scaling.yarn_beta_fast" in row.gguf_keys or reads_rope_freqs(arch)
    if config.rope.scaling == "yarn" and betas != USUAL_BETAS and not reads:  # else: as divisors
        found.append(
            f"the model's YaRN scaling has beta_fast {betas[0]:g} and beta_slow {betas[1]:g}, but llama.cpp ignores "
            f"{arch}.rope.scaling.yarn_beta_fast and yarn_beta_slow, and takes 32 and 1: its results differ from the "
            f"original's on every text. Give llama.cpp both numbers with its options yarn-beta-fast and yarn-beta-slow"
        )
    return tuple(found)


def end_warnings(keys: Mapping[str, Any]) -> tuple[str, ...]:
    """A warning if a file with these keys names no end token; else an empty tuple.

    keys: plain values by key. llama.cpp ignores an id beyond the vocabulary, and then takes its default.
    """
    tokens, end = keys.get("tokenizer.ggml.tokens"), keys.get("tokenizer.ggml.eos_token_id")
    default = DEFAULT_END.get(str(keys.get("tokenizer.ggml.model")))
    if default is None or not isinstance(tokens, list) or default >= len(tokens):
        return ()
    if isinstance(end, int) and 0 <= end < len(tokens):
        return ()
    return (
        f"the tokenizer names no end token. llama.cpp then ends a generation at token {default} "
        f"({tokens[default]!r:.40}), which may be an ordinary token",
    )
