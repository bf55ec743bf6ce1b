"""What the plans of all safetensors folders share: tensors by their Hugging Face names, configuration, tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bitsmith.containers.floats import NUMBERS, WRITTEN_FLOATS
from bitsmith.containers.hf_folder import CONFIG, tokenizer_files
from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.hf_config import config_to_hf
from bitsmith.models.arch.names import hf_name, is_permuted
from bitsmith.models.arch.spec import ARCHITECTURES
from bitsmith.models.arch.tensors import ROPE_FREQS
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.recipe.plan import PlannedTensor, RowOrder

KEPT = re.compile(r"embed|\bwte\b|\bwpe\b|lm_head|router|\bgate\.weight$|conv|norm")


def wanted_tensors(checkpoint: Checkpoint) -> list[PlannedTensor]:
    """Every tensor of the source under its Hugging Face name, still in its own layout.

    A GGUF source of unknown architecture keeps its GGUF names.
    """
    tensors = checkpoint.source.tensors.values()
    if checkpoint.naming == "hf" or isinstance(checkpoint.shape, Exception):
        return [PlannedTensor(info, info.name, info.layout, {}, "") for info in tensors]
    config = checkpoint.config
    wanted: list[PlannedTensor] = []
    for info in tensors:
        name = hf_name(info.name)
        if info.name == ROPE_FREQS:  # config.json says the same
            continue
        if name is None:
            raise UnsupportedError(f"{checkpoint.source.path}: {info.name} has no Hugging Face name.")
        order = None
        if ARCHITECTURES[config.arch].permuted and is_permuted(info.name):
            order = RowOrder(config.heads if ".attn_q." in info.name else config.kv_heads, interleave=False)
        wanted.append(PlannedTensor(replace(info, name=name), info.name, info.layout, {}, "", order=order))
    return wanted


def is_vector(tensor: PlannedTensor) -> bool:
    """Whether the tensor is no matrix, or empty."""
    return len(tensor.info.shape) < 2 or not tensor.info.parameters


def own_float(tensor: PlannedTensor, otherwise: str) -> str:
    """The float layout a tensor has in the source; `otherwise` where it has none that is written."""
    return tensor.source_layout if tensor.source_layout in WRITTEN_FLOATS else otherwise


def as_float(tensor: PlannedTensor, name: str, reason: str) -> PlannedTensor:
    """The tensor in a float type of WRITTEN_FLOATS."""
    width = NUMBERS[name].itemsize
    info = replace(tensor.info, layout=name, nbytes=tensor.info.parameters * width)
    parts = {"data": ((info.rows, info.cols * width), np.dtype(np.uint8))}
    return replace(tensor, info=info, parts=parts, reason=reason)


def model_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json of a folder that holds the model, without the source's own quantization."""
    if checkpoint.naming == "hf":
        config = dict(checkpoint.hf_config)
    else:
        config = {} if isinstance(checkpoint.shape, Exception) else config_to_hf(checkpoint.config)
    config.pop("quantization_config", None)
    config.pop("compression_config", None)
    return config


def beside(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, bytes]:
    """The small files of the folder: `config` as config.json, and the tokenizer's."""
    if checkpoint.naming == "hf":
        assert checkpoint.folder is not None
        files = {name: path.read_bytes() for name, path in tokenizer_files(checkpoint.folder).items()}
    else:
        files = _tokenizer_from_gguf(checkpoint)
    return {CONFIG: as_json(config), **files}


def as_json(config: Mapping[str, Any]) -> bytes:
    """As transformers writes its small files."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _tokenizer_from_gguf(checkpoint: Checkpoint) -> dict[str, bytes]:
    """No file where the file has no vocabulary; weights without one can still be measured and taken apart."""
    from bitsmith.models.tokenizer import to_hf
    from bitsmith.models.tokenizer.from_gguf import vocabulary_from_gguf

    metadata = checkpoint.source.metadata
    return to_hf.tokenizer_files(vocabulary_from_gguf(metadata)) if "tokenizer.ggml.model" in metadata else {}
