"""Small model folders with random weights and the reference model's tokenizer, made where a test needs one."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import bitsmith

REFERENCE = Path(str(files("bitsmith") / "reference"))
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCAB = 64, 128, 2, 4, 2, 4096

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face name -> shape of a Llama of that configuration."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        found |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}self_attn.k_proj.weight": (kv, hidden),
            f"{prefix}self_attn.v_proj.weight": (kv, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}mlp.up_proj.weight": (inner, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, inner),
        }
    found["model.norm.weight"] = (hidden,)
    if config.get("attention_bias"):
        biased = [(name, shape) for name, shape in found.items() if ".self_attn." in name]
        found |= {f"{name.removesuffix('weight')}bias": shape[:1] for name, shape in biased}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocab, hidden)
    return found


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random BF16 weights; norms near one."""
    rng = np.random.default_rng(seed)
    return {
        name: ((rng.standard_normal(shape) * 0.05) + (1.0 if len(shape) == 1 else 0.0)).astype(ml_dtypes.bfloat16)
        for name, shape in shapes(config).items()
    }


def make_folder(folder: Path, *, tensors: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """A model folder: configuration with `changes`, `tensors` or random ones, the reference tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights(config) if tensors is None else tensors, folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copy(REFERENCE / name, folder / name)
    return folder


HERMES = """\
{%- for t in tools or [] %}<tools>{{ t | tojson }}</tools>{% endfor %}
{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}
    {%- for tool_call in m.tool_calls or [] %}{%- set tool_call = tool_call.function -%}
        <tool_call>
{{ '{' }}"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}{{ '}' }}
</tool_call>
    {%- endfor %}
    {%- if m.role == 'assistant' %}<|endoftext|>{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


def with_tools(folder: Path) -> Path:
    """A folder of the reference model whose chat template knows tools, as Hermes and Qwen write them."""
    made = bitsmith.convert("reference", to="bf16", out=folder).out
    (made / "chat_template.jinja").write_text(HERMES)
    return made
