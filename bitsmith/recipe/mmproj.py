"""Assignments for mmproj files: the parts for images of a model, for llama.cpp, in 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bitsmith.containers.derived import with_derived
from bitsmith.containers.floats import NUMBERS
from bitsmith.containers.gguf.metadata_values import Value, string, u32
from bitsmith.containers.gguf.writer import gguf_layout
from bitsmith.containers.hf_folder import CONFIG, read_object
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.manifest import Manifest, to_gguf_keys
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.arch.towers import TowerTensor, tower_keys, tower_of, tower_tensors
from bitsmith.models.checkpoint import Checkpoint, require_float
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.mixes import find_mix
from bitsmith.recipe.plan import Assignment, PlannedTensor, RowOrder
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.target import MMPROJ, Target

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # the last one wins, as in llama.cpp's converter
_QUANTIZATION_VERSION = 2
_BREAK = "[IMG_BREAK]"


def assign_mmproj(checkpoint: Checkpoint, target: Target, options: PlanOptions) -> Assignment:
    """The assignment of the file that llama.cpp's converter writes with --mmproj, in F16.

    Raises UnsupportedError for a GGUF source, a tower that bitsmith does not know, and tensors with codes; FileError
    for a missing field or file.
    """
    require_float(checkpoint, requantize=options.requantize)
    if checkpoint.naming != "hf" or checkpoint.folder is None:
        raise UnsupportedError(
            f"{checkpoint.source.path}: a GGUF file of a text decoder holds no parts for images; give the model's "
            "Hugging Face folder for --to=mmproj."
        )
    config, origin = checkpoint.hf_config, str(checkpoint.folder / CONFIG)
    tower = tower_of(config)
    token = _break_token(checkpoint) if tower is not None and tower.break_token else None
    found = tuple(tower_tensors(config, checkpoint.source.tensors, origin, break_token=token))
    source = with_derived(checkpoint.source, {each.name: each.derived for each in found})
    keys: dict[str, Value] = {
        "general.architecture": string("clip"),
        "general.type": string("mmproj"),
        "general.name": string(options.model_name or checkpoint.name),
        "general.file_type": u32(find_mix("f16").file_type),
        "general.quantization_version": u32(_QUANTIZATION_VERSION),
        **tower_keys(config, _processor(checkpoint), origin),
    }
    tensors = tuple(_planned(each, source.tensors[each.name]) for each in found)
    infos = [tensor.info for tensor in tensors]

    def layouts(manifest: Manifest) -> list[FileLayout]:
        return gguf_layout(options.filename, {**keys, **to_gguf_keys(manifest)}, infos)

    ignored = (f"rules do not apply to {MMPROJ} files",) if options.rules else ()
    return Assignment(
        checkpoint=replace(checkpoint, source=source),
        target=target,
        options=options,
        tensors=tensors,
        layouts=layouts,
        extras={},
        keys=keys,
        warnings=ignored,
    )


def _planned(tensor: TowerTensor, stored: TensorInfo) -> PlannedTensor:
    layout = "f32" if tensor.floats else "f16"
    width = NUMBERS.width(layout)
    info = TensorInfo(tensor.name, stored.shape, layout, stored.parameters * width)
    parts = {"data": ((info.rows, info.cols * width), np.dtype(np.uint8))}
    order = RowOrder(tensor.heads, interleave=True) if tensor.heads else None
    why = "stays in float32" if tensor.floats else "a matrix of the tower"
    return PlannedTensor(info, tensor.name, stored.layout, parts, why, order=order)


def _processor(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """How images are scaled. Raises FileError if no file says it."""
    assert checkpoint.folder is not None
    found: dict[str, Any] = {}
    for name in _PROCESSORS:
        path = checkpoint.folder / name
        if not path.exists():
            continue
        values = read_object(path)
        inner = values.get("image_processor")
        found |= {**values, **(inner if isinstance(inner, dict) else {})}
    if not found:
        raise FileError(
            f"{checkpoint.folder}: {_PROCESSORS[0]} is missing, which says how images are scaled; download the whole "
            "model."
        )
    return found


def _break_token(checkpoint: Checkpoint) -> int | None:
    """The number of the token between the rows of an image; None if the tokenizer has none."""
    from bitsmith.models.tokenizer.from_hf import read_tokenizer

    assert checkpoint.folder is not None
    table = next(
        (info for name, info in checkpoint.source.tensors.items() if name.endswith("embed_tokens.weight")), None
    )
    if table is None:
        return None
    vocabulary = read_tokenizer(checkpoint.folder, pre=None, vocab_size=table.rows)
    return vocabulary.tokens.index(_BREAK) if _BREAK in vocabulary.tokens else None
