"""Lists the tensors that a configuration requires, with their shapes, and checks a file for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from bitsmith.errors import FileError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.names import Naming, gguf_name, hf_name, skipped
from bitsmith.quant.tensor import TensorInfo

ROPE_FREQS = "rope_freqs.weight"


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape (row-major, [rows, cols]) of every tensor of the model by GGUF name, in file order.

    A tied model has no "output.weight". rope_freqs.weight is left out, since it is computed from the config.
    """
    hidden, inner = config.hidden, config.intermediate
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab, hidden)}
    linears: list[tuple[str, int, int]] = [
        ("attn_q", q, hidden),
        ("attn_k", kv, hidden),
        ("attn_v", kv, hidden),
        ("attn_output", hidden, q),
        ("ffn_gate", inner, hidden),
        ("ffn_up", inner, hidden),
        ("ffn_down", hidden, inner),
    ]
    for layer in range(config.layers):
        prefix = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            shapes[f"{prefix}{norm}.weight"] = (hidden,)
        if config.qk_norm:
            for norm in ("attn_q_norm", "attn_k_norm"):
                shapes[f"{prefix}{norm}.weight"] = (config.head_dim,)
        for name, rows, cols in linears:
            shapes[f"{prefix}{name}.weight"] = (rows, cols)
            if config.has_bias(name, layer):
                shapes[f"{prefix}{name}.bias"] = (rows,)
    shapes["output_norm.weight"] = (hidden,)
    if not config.tied:
        shapes["output.weight"] = (config.vocab, hidden)
    return shapes


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
    expected = expected_tensors(config)
    wanted = {_file_name(name, naming): shape for name, shape in expected.items()}
    missing = [(own, name) for own, name in zip(wanted, expected, strict=True) if own not in tensors]
    if missing:
        raise _missing(where, config, missing, len(wanted), naming)
    for (name, shape), own in zip(expected.items(), wanted, strict=True):
        if tuple(tensors[own].shape) != shape:
            raise FileError(
                f"{where}{own} has shape {list(tensors[own].shape)}, but the configuration requires {list(shape)} "
                f"({_fields_of(name, naming)}); the file's configuration belongs to another model, or was changed."
            )
    for name in tensors:
        if name not in wanted and name not in ignored and not _is_known_extra(name, naming, config):
            raise _unexpected(where, config, name, naming)


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


def _unexpected(where: str, config: ModelConfig, name: str, naming: Naming) -> FileError:
    known = name if naming == "gguf" else gguf_name(name)
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
}


def _fields_of(name: str, naming: Naming) -> str:
    """The fields of the configuration that decide the shape of a tensor, or whether a bias exists."""
    part, _, kind = name.rpartition(".")
    part = part.rpartition(".")[2]
    sizes = _SIZES[part]
    if kind == "bias":
        sizes = ("mlp bias",) if part.startswith("ffn") else ("attention bias",)
    fields = _GGUF_FIELDS if naming == "gguf" else _HF_FIELDS
    return ", ".join(fields[size] for size in sizes)


def _file_name(name: str, naming: Naming) -> str:
    if naming == "gguf":
        return name
    found = hf_name(name)
    assert found is not None, name
    return found


def _is_known_extra(name: str, naming: Naming, config: ModelConfig) -> bool:
    if naming == "gguf":
        return name == ROPE_FREQS
    return skipped(name, tied=config.tied) and gguf_name(name) in (None, "output.weight")
