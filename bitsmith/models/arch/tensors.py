"""Lists the tensors that a configuration requires, with their shapes, and checks a file for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from bitsmith.errors import FileError
from bitsmith.models.arch.block import expected_tensors
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.names import Names, Naming, beside_decoder, skipped
from bitsmith.models.arch.sources import FileTensors, gguf_file_tensors, hf_file_tensors
from bitsmith.quant.tensor import TensorInfo

__all__ = ["ROPE_FREQS", "ROPE_LONG", "ROPE_SHORT", "check_tensors", "expected_tensors", "file_tensors"]

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def file_tensors(config: ModelConfig, tensors: Mapping[str, TensorInfo], naming: Naming) -> FileTensors:
    """The tensors that a file of a model must hold. tensors: those that it holds, by name"""
    return gguf_file_tensors(config, tensors) if naming == "gguf" else hf_file_tensors(config, tensors)


def check_tensors(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    *,
    naming: Naming = "gguf",
    origin: str = "",
    ignored: Set[str] = frozenset(),
) -> None:
    """Raise FileError unless a file has exactly the tensors that its configuration requires.

    tensors: the file's tensors by name
    naming: whether the names are Hugging Face's or GGUF's
    origin: name of the file, for errors
    ignored: names of further tensors that the file may have, see `reconcile`
    """
    where = f"{origin}: " if origin else ""
    files = file_tensors(config, tensors, naming)
    known = {own: own if naming == "gguf" else files.names.gguf(own) or own for own in files.wanted}
    missing = [(own, known[own]) for own in files.wanted if own not in tensors]
    if missing:
        raise _missing(where, config, missing, len(files.wanted), naming)
    for own, shape in files.wanted.items():
        if tuple(tensors[own].shape) != shape:
            fields = _fields_of(known[own], naming)
            told = f" ({fields})" if fields else ""
            raise FileError(
                f"{where}{own} has shape {list(tensors[own].shape)}, but the configuration requires {list(shape)}"
                f"{told}; the file's configuration belongs to another model, or was changed."
            )
    for name in tensors:
        if name not in files.wanted and name not in ignored and not _is_known_extra(name, naming, config, files.names):
            raise _unexpected(where, config, name, naming, files.names)


def _missing(
    where: str, config: ModelConfig, missing: Sequence[tuple[str, str]], total: int, naming: Naming
) -> FileError:
    own, name = missing[0]
    if name == "output.weight":
        return FileError(
            f"{where}{own} is missing: the configuration says that the output head is not tied to the embedding "
            "(tie_word_embeddings false or absent), but the file holds no head. If the model ties them, set "
            '"tie_word_embeddings": true; else fetch the model again.'
        )
    if name.endswith(".bias"):
        return FileError(
            f"{where}{own} is missing: the configuration gives this linear a bias ({_fields_of(name, naming)}), but no "
            "layer of the file has it; the file is incomplete, or its configuration belongs to another model."
        )
    return FileError(
        f"{where}{len(missing)} of {total} tensors that the configuration requires ({config.layers} layers) "
        f"are missing, first {own}; the file is incomplete, or its configuration belongs to another model. "
        "Fetch or convert the model again."
    )


def _unexpected(where: str, config: ModelConfig, name: str, naming: Naming, names: Names) -> FileError:
    known = name if naming == "gguf" else names.gguf(name)
    if known is not None and known.endswith(".bias") and known.startswith("blk."):
        return FileError(
            f"{where}{name} is not zero, but the configuration ({config.arch}) gives this linear no bias "
            f"({_fields_of(known, naming)}); the configuration belongs to another model, or was changed."
        )
    return FileError(
        f"{where}unexpected tensor {name}: the configuration ({config.arch}, {config.layers} layers) has no "
        "such tensor, and it is not zero; the file's configuration belongs to another model, or the model has a part "
        "that bitsmith does not know."
    )


_HF_FIELDS = {
    "hidden": "hidden_size",
    "vocab": "vocab_size",
    "inner": "intermediate_size",
    "q": "num_attention_heads x head_dim",
    "kv": "num_key_value_heads x head_dim",
    "head": "head_dim",
    "attention bias": "attention_bias",
    "mlp bias": "mlp_bias",
    "experts": "num_experts",
    "expert inner": "moe_intermediate_size",
    "delta heads": "linear_num_key_heads, linear_key_head_dim, linear_num_value_heads, linear_value_head_dim",
    "delta values": "linear_num_value_heads",
    "taps": "linear_conv_kernel_dim",
}
_GGUF_FIELDS = {
    "hidden": "embedding_length",
    "vocab": "vocab_size",
    "inner": "feed_forward_length",
    "q": "attention.head_count x attention.key_length",
    "kv": "attention.head_count_kv x attention.key_length",
    "head": "attention.key_length",
    "attention bias": "tensors of other layers",
    "mlp bias": "tensors of other layers",
    "experts": "expert_count",
    "expert inner": "expert_feed_forward_length",
    "delta heads": "ssm.group_count, ssm.state_size, ssm.time_step_rank",
    "delta values": "ssm.time_step_rank",
    "taps": "ssm.conv_kernel",
}
_SIZES = {
    "token_embd": ("vocab", "hidden"),
    "output": ("vocab", "hidden"),
    "output_norm": ("hidden",),
    "attn_norm": ("hidden",),
    "ffn_norm": ("hidden",),
    "attn_q_norm": ("head",),
    "attn_k_norm": ("head",),
    "attn_q": ("q", "hidden"),
    "attn_k": ("kv", "hidden"),
    "attn_v": ("kv", "hidden"),
    "attn_output": ("hidden", "q"),
    "ffn_gate": ("inner", "hidden"),
    "ffn_up": ("inner", "hidden"),
    "ffn_down": ("hidden", "inner"),
    "attn_qkv": ("q", "kv", "hidden"),
    "ffn_gate_inp": ("experts", "hidden"),
    "ffn_gate_exps": ("experts", "expert inner", "hidden"),
    "ffn_up_exps": ("experts", "expert inner", "hidden"),
    "ffn_down_exps": ("experts", "hidden", "expert inner"),
    "gate_up_proj": ("experts", "expert inner", "hidden"),  # stacks of folders
    "down_proj": ("experts", "hidden", "expert inner"),
    "post_attention_norm": ("hidden",),
    "post_ffw_norm": ("hidden",),
    "ssm_conv1d": ("delta heads", "taps"),
    "conv1d": ("delta heads", "taps"),
    "in_proj_qkv": ("delta heads", "hidden"),
    **dict.fromkeys(("ssm_a", "A_log", "ssm_dt", "dt_bias"), ("delta values",)),
    **dict.fromkeys(("ssm_alpha", "ssm_beta", "ssm_ba"), ("delta values", "hidden")),
}


def _fields_of(name: str, naming: Naming) -> str:
    """The fields of the configuration that decide the shape of a tensor, or whether a bias exists; "" if not known."""
    part, _, kind = name.rpartition(".")
    part = next((each for each in reversed((part or kind).split(".")) if not each.isdigit()), part)
    part = kind if kind in _SIZES else part
    sizes = _SIZES.get(part, ())
    if kind == "bias" and part in _SIZES and not part.startswith("ssm"):
        sizes = ("mlp bias",) if part.startswith("ffn") else ("attention bias",)
    fields = _GGUF_FIELDS if naming == "gguf" else _HF_FIELDS
    return ", ".join(fields[size] for size in sizes)


def _is_known_extra(name: str, naming: Naming, config: ModelConfig, names: Names) -> bool:
    if naming == "gguf":
        return name == ROPE_FREQS or (config.rope.scaling == "longrope" and name in (ROPE_LONG, ROPE_SHORT))
    if beside_decoder(name):
        return True
    return skipped(name, tied=config.tied) and names.gguf(name) in (None, "output.weight")
