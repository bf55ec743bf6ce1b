"""Table of architectures: one row for each model family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bitsmith.errors import UnsupportedError

_ATTENTION = ("attn_q", "attn_k", "attn_v")
_ALL_LINEARS = (*_ATTENTION, "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class ArchSpec:
    """The differences of one family of decoder-only transformers from the others.

    name: key of ARCHITECTURES and `ModelConfig.arch`
    hf_classes: class names in config.json's "architectures"
    model_type: config.json's "model_type"
    gguf: GGUF's general.architecture
    permuted: True if GGUF orders the rows of q and k so that rotary pairs are neighbours (interleaved rope)
    qk_norm: True if there is an RMSNorm over each head of q and k
    always_qkv_bias: True if q, k and v always have a bias
    gguf_biases: linears for which llama.cpp's loader of this family reads a bias
    context, kv_heads, head_dim, window: transformers' defaults for fields that are missing in config.json. None if the
        default is computed (kv_heads = heads, head_dim = hidden / heads) or if there is none (window)
    windowed: "always" if every layer has the window, "by_layer" if the config chooses the layers, "never" if the family
        has no window
    """

    name: str
    hf_classes: tuple[str, ...]
    model_type: str
    gguf: str
    permuted: bool = False
    qk_norm: bool = False
    always_qkv_bias: bool = False
    gguf_biases: tuple[str, ...] = _ATTENTION
    context: int = 2048
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    windowed: Literal["always", "by_layer", "never"] = "never"


ARCHITECTURES: dict[str, ArchSpec] = {
    spec.name: spec
    for spec in (
        ArchSpec(
            "llama",
            ("LlamaForCausalLM", "LLaMAForCausalLM"),
            model_type="llama",
            gguf="llama",
            permuted=True,
            gguf_biases=_ALL_LINEARS,
        ),
        ArchSpec(
            "mistral",
            ("MistralForCausalLM",),
            model_type="mistral",
            gguf="llama",
            permuted=True,
            gguf_biases=_ALL_LINEARS,
            context=131072,
            kv_heads=8,
            window=4096,
            windowed="always",
        ),
        ArchSpec(
            "qwen2",
            ("Qwen2ForCausalLM",),
            model_type="qwen2",
            gguf="qwen2",
            always_qkv_bias=True,
            context=32768,
            kv_heads=32,
            window=4096,
            windowed="by_layer",
        ),
        ArchSpec(
            "qwen3",
            ("Qwen3ForCausalLM",),
            model_type="qwen3",
            gguf="qwen3",
            qk_norm=True,
            context=32768,
            kv_heads=32,
            head_dim=128,
            window=4096,
            windowed="by_layer",
        ),
    )
}


def spec_of_hf(classes: Sequence[str], model_type: str | None, origin: str) -> ArchSpec:
    """The family of a Hugging Face config, by its class names; without class names, by its model_type.

    origin: name of the file, for errors
    Raises UnsupportedError for an unknown family, with the known ones.
    """
    for spec in ARCHITECTURES.values():
        if any(name in spec.hf_classes for name in classes) or (not classes and model_type == spec.model_type):
            return spec
    found = ", ".join(classes) or f"model_type {model_type!r}"
    known = ", ".join(name for spec in ARCHITECTURES.values() for name in spec.hf_classes[:1])
    raise UnsupportedError(
        f"{origin}: unknown architecture {found}; known are {known}. Only --to native/... quantizes other models."
    )


def spec_of_gguf(architecture: str, origin: str) -> ArchSpec:
    """The family of a GGUF file, by general.architecture ("llama" is also Mistral).

    origin: name of the file, for errors
    Raises UnsupportedError for an unknown family, with the known ones.
    """
    for spec in ARCHITECTURES.values():
        if spec.gguf == architecture:
            return spec
    known = ", ".join(dict.fromkeys(spec.gguf for spec in ARCHITECTURES.values()))
    raise UnsupportedError(f"{origin}: unknown general.architecture {architecture!r}; known are {known}.")
