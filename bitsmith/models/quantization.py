"""Says in words how a model is quantized, as its own files say it, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitsmith.containers.gguf.file_types import FILE_TYPES
from bitsmith.containers.hf_folder import CONFIG, read_object
from bitsmith.errors import FileError
from bitsmith.models.shown import one_line

_KEYS = {  # key of a configuration -> words; {} is its value
    "quant_algo": "{}",
    "format": "{}",
    "fmt": "{}",
    "quant_type": "{}",
    "bnb_4bit_quant_type": "{}",
    "mode": "{}",
    "bits": "{} bits",
    "w_bit": "{} bits",
    "group_size": "groups of {}",
    "q_group_size": "groups of {}",
    "weight_block_size": "blocks of {}",
    "activation_scheme": "{} inputs",
    "checkpoint_format": "layout {}",
    "kv_cache_quant_algo": "{} cache",
}
_FLAGS = {  # key -> words if it is true, words if it is false
    "load_in_4bit": ("4 bits", ""),
    "load_in_8bit": ("8 bits", ""),
    "sym": ("symmetric", "with zero points"),
    "zero_point": ("with zero points", "symmetric"),
    "desc_act": ("ordered by activation", ""),
    "bnb_4bit_use_double_quant": ("double quantization", ""),
}
_LONGEST = 60  # characters of one value


def of_folder(folder: Path) -> str:
    """The quantization of a Hugging Face folder: "gptq, 4 bits, groups of 128"; "" if its files name none.

    Known are `quantization_config`, MLX's `quantization`, and ModelOpt's hf_quant_config.json.
    """
    try:
        config = read_object(folder / CONFIG)
    except FileError:  # weights alone can be inspected
        return ""
    if _is(config.get("quantization")) and "bits" in config["quantization"]:
        return _described("mlx", config["quantization"])
    found = next((config[key] for key in ("quantization_config", "compression_config") if _is(config.get(key))), None)
    if found is not None:
        return _described(str(found.get("quant_method") or "unnamed method"), found)
    try:
        modelopt = read_object(folder / "hf_quant_config.json")
    except FileError:
        return ""
    inner = modelopt.get("quantization")
    producer = modelopt.get("producer")
    name = producer.get("name") if isinstance(producer, dict) else None
    return _described(str(name or "modelopt"), inner) if isinstance(inner, dict) else ""


def _is(value: object) -> bool:
    return isinstance(value, dict) and bool(value)


def _described(method: str, config: Mapping[str, Any]) -> str:
    words = [method]
    for key, text in _KEYS.items():
        value = config.get(key)
        if value not in (None, "", -1) and not isinstance(value, dict | bool):
            words.append(text.format(value))
    for key, (yes, no) in _FLAGS.items():
        if isinstance(config.get(key), bool):
            words.append(yes if config[key] else no)
    return ", ".join(dict.fromkeys(one_line(word[:_LONGEST]) for word in words if word))


def of_gguf(metadata: Mapping[str, Any]) -> str:
    """llama.cpp's name of a GGUF file's mix, and whether an importance matrix weighted it; "" if unknown."""
    number = metadata.get("general.file_type")
    name = FILE_TYPES.get(number, f"file type {number}") if isinstance(number, int) else ""
    weighted = "weighted by an importance matrix" if "quantize.imatrix.file" in metadata else ""
    return ", ".join(word for word in (name, weighted) if word)
