"""Assignments for the native container: every format in a safetensors folder, for any architecture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bitsmith.containers import codec_for
from bitsmith.containers.floats import WRITTEN_FLOATS
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.manifest import Manifest, placeholder
from bitsmith.containers.native import LAYOUT_PREFIX
from bitsmith.containers.native_files import NativeTensor, native_files
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.checkpoint import Checkpoint, require_float, source_warnings
from bitsmith.quant.formats import FORMATS, UNSCOPED, get_format, resolve
from bitsmith.recipe.folder import (
    KEPT,
    as_float,
    beside,
    copied,
    guessed_linears,
    is_vector,
    model_config,
    own_float,
    transposed_layers,
    wanted_tensors,
)
from bitsmith.recipe.plan import Assignment, PlannedTensor
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.rules import Rule, first_match, unused_rules
from bitsmith.recipe.target import Target

_WHOLE_NUMBERS = frozenset({"i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "bool"})  # indices, masks
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}  # as config.json names them


def assign_native(checkpoint: Checkpoint, target: Target, options: PlanOptions) -> Assignment:
    """The assignment of a folder that holds `checkpoint` in the format `target.name`, or in a float type.

    Matrices get the format. Embeddings, output head, routers and norms keep the source's float type, unless --pure or
    a --rule changes it. Raises UsageError for an unknown format or rule, UnsupportedError for rows that no group
    divides and for a quantized source, FileError for a source without weights.
    """
    if target.name not in WRITTEN_FLOATS:
        get_format(target.name)
    rules = [Rule.parse(text, {*FORMATS, *UNSCOPED, *WRITTEN_FLOATS}) for text in options.rules]
    require_float(checkpoint, requantize=options.requantize)
    quantizes = target.name not in WRITTEN_FLOATS
    tensors = tuple(_plan_tensor(t, target, options, rules) for t in wanted_tensors(checkpoint, quantizes=quantizes))
    if not any(tensor.info.parameters for tensor in tensors):
        raise FileError(f"{checkpoint.source.path} holds no weights; there is nothing to quantize.")
    names = [tensor.info.name for tensor in tensors]
    vectors = {tensor.info.name for tensor in tensors if is_vector(tensor)}
    stored = [NativeTensor(tensor.info, tensor.parts) for tensor in tensors]

    def layouts(manifest: Manifest) -> list[FileLayout]:
        return native_files(stored, manifest, max_shard_bytes=options.max_shard_bytes)[0]

    config = model_config(checkpoint)
    if quantizes:
        config["quantization_config"] = {"quant_method": "bitsmith", "format": target.name}
    elif config:
        config["dtype" if "dtype" in config else "torch_dtype"] = _DTYPES[target.name]
    _, index = native_files(stored, placeholder("", "", ()), max_shard_bytes=options.max_shard_bytes)
    return Assignment(
        checkpoint=checkpoint,
        target=target,
        options=options,
        tensors=tensors,
        layouts=layouts,
        extras={**beside(checkpoint, config), **index},
        warnings=(
            *unused_rules(rules, names, kept=vectors),
            *(_kept_stacks(tensors) if quantizes else ()),
            *(_transposed(checkpoint) if quantizes else ()),
            *guessed_linears(checkpoint, tensors),
            *source_warnings(checkpoint, quantizes=quantizes),
        ),
    )


def _transposed(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The warning that groups of weights run the other way than elsewhere."""
    found = transposed_layers(checkpoint)
    return (f"{found}: weights that share a scale are of one input, not of one output",) if found else ()


def _kept_stacks(tensors: Sequence[PlannedTensor]) -> tuple[str, ...]:
    """The warning that stacks of experts get no codes."""
    stacks = [t.info for t in tensors if t.format is None and len(t.info.shape) > 2 and "expert" in t.info.name]
    return (f"{len(stacks)} stacks of matrices stay in 16 bits, the first is {stacks[0].name}",) if stacks else ()


def _plan_tensor(tensor: PlannedTensor, target: Target, options: PlanOptions, rules: Sequence[Rule]) -> PlannedTensor:
    rule = first_match(rules, tensor.info.name)
    if tensor.source_layout in _WHOLE_NUMBERS and rule is None:
        return copied(tensor, "whole numbers are no weights")
    if is_vector(tensor):
        return as_float(tensor, own_float(tensor, "f32"), "a vector" if tensor.info.parameters else "empty")
    if rule is not None:
        return _as_type(tensor, rule.type, f"rule '{rule}'")
    if tensor.outside and target.name not in WRITTEN_FLOATS:
        return as_float(tensor, own_float(tensor, "f16"), "not of the text decoder, or transposed")
    if KEPT.search(tensor.info.name) and not options.pure and target.name not in WRITTEN_FLOATS:
        return as_float(tensor, own_float(tensor, "f16"), "embedding, head or router keeps its precision")
    return _as_type(tensor, target.name, "pure" if options.pure else target.name)


def _as_type(tensor: PlannedTensor, name: str, reason: str) -> PlannedTensor:
    if name in WRITTEN_FLOATS:
        return as_float(tensor, name, reason)
    info = tensor.info
    try:
        format = resolve(name, info.cols)
    except UnsupportedError as error:
        raise UnsupportedError(f"{info.name}: {error.message}, with --rule='{re.escape(info.name)}=f16'.") from error
    codec = codec_for("native", format)
    parts = codec.layout(info.shape)
    nbytes = sum(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in parts.values())
    info = replace(info, layout=LAYOUT_PREFIX + format.name, nbytes=nbytes)
    return replace(tensor, info=info, parts=parts, reason=reason, format=format, codec=codec)
