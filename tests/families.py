"""Small random models of families, made with transformers, and how they differ from a Llama."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.tiny import REFERENCE

VOCAB = 4096
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0}
TEMPERED = YARN | {"rope_theta": 1e6, "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0}
DELTA = {
    "linear_num_value_heads": 6,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
SHARED = EXPERTS | {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 32}
GEMMA4: dict[str, Any] = {
    "head_dim": 32,
    "global_head_dim": 64,
    "sliding_window": 12,
    "num_hidden_layers": 6,
    "layer_types": [*["sliding_attention"] * 3, "full_attention", "sliding_attention", "full_attention"],
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # transformers' model_type, and changes of `SHAPE`
    "smollm3": ("smollm3", {"tie_word_embeddings": True}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 12}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.02,
            "residual_multiplier": 0.22,
            "logits_scaling": 0.5,
        },
    ),
    "seed_oss": ("seed_oss", {"head_dim": 32, "attention_bias": True, "attention_out_bias": False}),
    "hunyuan": ("hunyuan_v1_dense", {"head_dim": 32}),
    "ernie4_5": ("ernie4_5", {"head_dim": 32}),
    "exaone4": ("exaone4", {"sliding_window": 12, "sliding_window_pattern": 4}),
    "glm4": ("glm4", {"head_dim": 32}),
    "gemma2": ("gemma2", {"head_dim": 32, "sliding_window": 12, "query_pre_attn_scalar": 32}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 32, "sliding_window": 12, "num_hidden_layers": 6, "query_pre_attn_scalar": 32},
    ),
    "gemma4": (
        "gemma4_text",
        {
            **GEMMA4,
            "hidden_size_per_layer_input": 32,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma4-large": ("gemma4_text", {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1}),
    "gemma4_moe": (
        "gemma4_text",
        {
            **GEMMA4,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 64,
        },
    ),
    "phi-mini": ("phi3", {"sliding_window": None}),
    "phi-long": (
        "phi3",
        {
            "sliding_window": None,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 48,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                "long_factor": [1.5, 2.0, 2.5, 3.0, 4.0, 5.0],
            },
        },
    ),
    "ministral3": ("ministral3", {"head_dim": 32, "rope_parameters": TEMPERED}),
    "qwen3_moe": ("qwen3_moe", {"head_dim": 32, "moe_intermediate_size": 64, "norm_topk_prob": True, **EXPERTS}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "olmoe": ("olmoe", {"num_key_value_heads": 4, "intermediate_size": 64, **EXPERTS}),
    "qwen3_5": ("qwen3_5_text", {"head_dim": 32, **DELTA}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {"head_dim": 32, **DELTA, **SHARED}),
    "qwen3_next": ("qwen3_next", {"head_dim": 32, **DELTA, **SHARED}),
    "gpt_oss": (
        "gpt_oss",
        {
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 64,
            "sliding_window": 12,
        },
    ),
}


def model_of(name: str) -> Any:
    """The model in float32. Norms and biases differ from 1 and 0, so that a lost or misplaced one shows."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, changes = MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SHAPE | changes))).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and not key.endswith("bias"):
                parameter.copy_(noise * (0.5 if "embed" in key else 0.15))
            else:
                parameter.add_(noise * 0.2)
        for key, buffer in model.named_buffers():
            if key.endswith("layer_scalar"):
                buffer.mul_(float(0.8 + 0.4 * torch.rand((), generator=generator)))
    return model


def folder_of(name: str, folder: Path) -> tuple[Path, Any]:
    """A folder of the model with the reference model's tokenizer, and the model."""
    model = model_of(name)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REFERENCE / file, folder / file)
    return folder, model


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    """transformers' logits of one sequence: float32 [n, vocab]."""
    with torch.no_grad():
        found: np.ndarray = model(torch.as_tensor(tokens[None])).logits[0].numpy()
    return found


VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8}
SECTIONS = {"head_dim": 32, "rope_scaling": {"mrope_section": [8, 4, 4]}}
TEXT_ONLY = {
    "qwen3_vl": ("qwen3_vl_text", SECTIONS),
    "qwen3_vl_moe": ("qwen3_vl_moe_text", {**SECTIONS, "moe_intermediate_size": 32, **EXPERTS}),
}
_QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16,
}
WRAPPERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # model_type of the whole; entry of MODELS for its text part; changes of the vision tower and of the whole
    "gemma3": ("gemma3", "gemma3", {"model_type": "siglip_vision_model"}, {"mm_tokens_per_image": 4}),
    "qwen3_vl": ("qwen3_vl", "qwen3_vl", _QWEN_VISION, {}),
    "qwen3_vl_moe": ("qwen3_vl_moe", "qwen3_vl_moe", _QWEN_VISION, {}),
    "qwen3_5": (
        "qwen3_5",
        "qwen3_5",
        {"model_type": "qwen3_5_vision", "depth": 1, "num_heads": 2, "out_hidden_size": 64},
        {},
    ),
    "mistral3": ("mistral3", "ministral3", {"model_type": "pixtral", "head_dim": 16, "num_hidden_layers": 3}, {}),
    "gemma4": ("gemma4", "gemma4", {"model_type": "gemma4_vision", "head_dim": 16, "num_key_value_heads": 2}, {}),
}


def wrapper_of(name: str, folder: Path) -> tuple[Path, Any]:
    """The folder of a model that takes images, with random weights, and the model."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    kind, text, vision, changes = WRAPPERS[name]
    part, own = (MODELS | TEXT_ONLY)[text]
    whole = {"text_config": {"model_type": part, **SHAPE, **own}, "vision_config": VISION | vision, **changes}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **whole)).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REFERENCE / file, folder / file)
    preprocessor(folder)
    _as_published(folder)
    return folder, model


def preprocessor(folder: Path) -> None:
    """The file that says how images are scaled; unequal numbers, so that a lost or misplaced one shows."""
    values = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25], "image_seq_length": 4}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def _as_published(folder: Path) -> None:
    """Names, orientation and tokens as published folders have them, where transformers 5 saves others."""
    from safetensors.numpy import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    siglip = ("vision_tower.embeddings.", "vision_tower.encoder.", "vision_tower.post_layernorm.")
    found = {}
    for name, values in load_file(folder / "model.safetensors").items():
        if name.startswith("vision_tower.head."):
            continue
        if config["model_type"] == "gemma3" and name.startswith(siglip):
            name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        stack = ".mlp.experts." in name and values.ndim == 3
        found[name] = np.ascontiguousarray(values.swapaxes(1, 2)) if stack else values
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    if config["vision_config"].get("model_type") == "pixtral":
        for name in ("tokenizer.json", "tokenizer_config.json"):  # llama.cpp looks for this token
            text = (folder / name).read_text(encoding="utf-8")
            (folder / name).write_text(text.replace("<|assistant|>", "[IMG_BREAK]"), encoding="utf-8")
