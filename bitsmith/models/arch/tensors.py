"""Lists the tensors that a configuration requires, with their shapes, and checks a file for them."""

from __future__ import annotations

from collections.abc import Mapping

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
    linears: list[tuple[str, int, int, bool]] = [
        ("attn_q", q, hidden, config.qkv_bias),
        ("attn_k", kv, hidden, config.qkv_bias),
        ("attn_v", kv, hidden, config.qkv_bias),
        ("attn_output", hidden, q, config.output_bias),
        ("ffn_gate", inner, hidden, config.mlp_bias),
        ("ffn_up", inner, hidden, config.mlp_bias),
        ("ffn_down", hidden, inner, config.mlp_bias),
    ]
    for layer in range(config.layers):
        prefix = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            shapes[f"{prefix}{norm}.weight"] = (hidden,)
        if config.qk_norm:
            for norm in ("attn_q_norm", "attn_k_norm"):
                shapes[f"{prefix}{norm}.weight"] = (config.head_dim,)
        for name, rows, cols, bias in linears:
            shapes[f"{prefix}{name}.weight"] = (rows, cols)
            if bias:
                shapes[f"{prefix}{name}.bias"] = (rows,)
    shapes["output_norm.weight"] = (hidden,)
    if not config.tied:
        shapes["output.weight"] = (config.vocab, hidden)
    return shapes


def check_tensors(
    config: ModelConfig, tensors: Mapping[str, TensorInfo], *, naming: Naming = "gguf", origin: str = ""
) -> None:
    """Raise FileError unless a file has exactly the tensors that its configuration requires.

    tensors: the file's tensors by name
    naming: whether the names are Hugging Face's or GGUF's
    origin: name of the file, for errors
    """
    where = f"{origin}: " if origin else ""
    wanted = {_file_name(name, naming): shape for name, shape in expected_tensors(config).items()}
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise FileError(
            f"{where}{len(missing)} of {len(wanted)} tensors that the configuration requires ({config.layers} layers) "
            f"are missing, first {missing[0]}; the file is incomplete, or its configuration belongs to another model. "
            "Fetch or convert the model again."
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise FileError(
                f"{where}{name} has shape {list(tensors[name].shape)}, but the configuration requires {list(shape)}; "
                "the file's configuration belongs to another model."
            )
    for name in tensors:
        if name not in wanted and not _is_known_extra(name, naming, config):
            raise FileError(
                f"{where}unexpected tensor {name}: the configuration ({config.arch}, {config.layers} layers) has no "
                "such tensor; the file's configuration belongs to another model."
            )


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
