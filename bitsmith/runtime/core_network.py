"""Which networks the C++ core computes (csrc/run/), and with which inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.models.arch.config import ModelConfig

if TYPE_CHECKING:
    from bitsmith.quant.input_rounding import InputRounding

CORE_ARCHITECTURES = (  # plans count on them
    *("llama", "mistral3", "qwen2", "qwen3", "qwen3vl", "gemma3", "phi3", "olmo2", "smollm3", "granite"),
    *("seed_oss", "hunyuan-dense", "ernie4_5", "exaone4", "glm4", "qwen3moe", "qwen3vlmoe", "olmoe", "gemma2"),
    *("gpt-oss", "qwen35", "qwen35moe", "qwen3next", "gemma4"),
)


def core_lacks(config: ModelConfig) -> str | None:
    """What of a configuration the core does not know, in words; None if it computes the model."""
    known = config.activation in ("silu", "gelu_tanh", "clamped")
    return None if known else f"the activation {config.activation}"


def rounds(rounding: InputRounding | None) -> bool:
    """Whether the core rounds inputs in this way: LLM.int8(), or not at all."""
    from bitsmith.quant.input_rounding import LLM_INT8

    return rounding is None or rounding.type == LLM_INT8
