"""Assignments for GGUF in llama-quantize's mixes, from a Hugging Face checkpoint or another GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bitsmith.containers.floats import FLOATS, MXFP4_STACK
from bitsmith.containers.gguf.blocks import CODECS
from bitsmith.containers.gguf.metadata_values import Value, string, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.gguf.types import TYPES
from bitsmith.containers.gguf.writer import gguf_layout
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.manifest import SET_KEY, Manifest, is_manifest_key, set_id, to_gguf_keys
from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.gguf_config import config_to_gguf, rope_tensors
from bitsmith.models.arch.llamacpp import differences, end_warnings
from bitsmith.models.arch.names import is_permuted
from bitsmith.models.arch.spec import ARCHITECTURES
from bitsmith.models.arch.tensors import check_tensors, expected_tensors
from bitsmith.models.checkpoint import Checkpoint, require_float, source_warnings
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.choose import Selection, TypeChoice, choose_types
from bitsmith.recipe.mixes import find_mix
from bitsmith.recipe.plan import Assignment, PlannedTensor, RowOrder
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.rules import Rule
from bitsmith.recipe.shape import ModelShape
from bitsmith.recipe.target import Target

_QUANTIZATION_VERSION = 2  # version of ggml's block layouts, GGML_QNT_VERSION


def assign_gguf(checkpoint: Checkpoint, target: Target, options: PlanOptions) -> Assignment:
    """The assignment of a GGUF v3 file of `checkpoint` in the mix `target.name`.

    Raises UsageError for an unknown mix or rule, FileError for tensors that contradict the configuration,
    UnsupportedError for an architecture, tokenizer or quantized source that cannot be converted.
    """
    find_mix(target.name)
    for text in options.rules:
        Rule.parse(text)
    require_float(checkpoint, requantize=options.requantize)
    wanted, shape = gguf_tensors(checkpoint)
    return assign_mix(checkpoint, target, options, wanted, shape, gguf_keys(checkpoint, options.pre))


def assign_mix(
    checkpoint: Checkpoint,
    target: Target,
    options: PlanOptions,
    wanted: Sequence[PlannedTensor],
    shape: ModelShape,
    keys: Mapping[str, Value],
) -> Assignment:
    """Like `assign_gguf`, with the results of `gguf_tensors` and `gguf_keys`. These do not depend on the mix."""
    mix = find_mix(target.name)
    rules = [Rule.parse(text) for text in options.rules]
    source = checkpoint.source
    outputs = [t.info for t in wanted]
    importance = options.calibration is not None
    selection = choose_types(mix.name, shape, outputs, importance=importance, pure=options.pure, rules=rules)
    if isinstance(source, GgufSource):
        selection = selection.keeping(outputs)
    if mix.quantizes and not options.pure:
        stacks = {tensor.info.name for tensor in wanted if tensor.source_layout == MXFP4_STACK}
        selection = selection.published(stacks, rules)
    tensors = tuple(_planned(tensor, choice) for tensor, choice in zip(wanted, selection.choices, strict=True))
    infos = [tensor.info for tensor in tensors]
    # keep the order of keys: general keys first, then those of the architecture, then those of the tokenizer
    general = {"general.file_type": u32(mix.file_type), "general.quantization_version": u32(_QUANTIZATION_VERSION)}
    if options.model_name is not None:
        general["general.name"] = string(options.model_name)
    keys = _with_general(keys, general)

    def layouts(manifest: Manifest) -> list[FileLayout]:
        return gguf_layout(
            options.filename,
            {**keys, **to_gguf_keys(manifest)},
            infos,
            max_shard_bytes=options.max_shard_bytes,
            shard_keys={SET_KEY: string(set_id(manifest))},
        )

    return Assignment(
        checkpoint=checkpoint,
        target=Target("gguf", mix.name),
        options=options,
        tensors=tensors,
        layouts=layouts,
        extras={},
        keys=keys,
        warnings=(*_warnings(checkpoint, selection), *end_warnings(_plain(keys))),
    )


def _plain(keys: Mapping[str, Value]) -> dict[str, Any]:
    return {name: value.plain() for name, value in keys.items() if name.startswith("tokenizer.ggml.")}


def _with_general(keys: Mapping[str, Value], general: Mapping[str, Value]) -> dict[str, Value]:
    """Put `general` after the other general.* keys. Keys that exist already keep their place."""
    merged = {name: general.get(name, value) for name, value in keys.items()}
    missing = {name: value for name, value in general.items() if name not in merged}
    front = {name: value for name, value in merged.items() if name.startswith("general.")}
    return {**front, **missing, **{name: value for name, value in merged.items() if name not in front}}


def gguf_tensors(checkpoint: Checkpoint) -> tuple[list[PlannedTensor], ModelShape]:
    """The tensors of a GGUF file of `checkpoint`, in the source's layouts, and the shape that mixes depend on.

    Raises FileError for tensors that contradict the configuration, UnsupportedError for an unknown architecture.
    """
    source = checkpoint.source
    if isinstance(source, GgufSource):
        wanted = [PlannedTensor(info, info.name, info.layout, {}, "") for info in source.tensors.values()]
        return wanted, ModelShape.from_gguf(source.metadata, source.tensors.values())
    config = checkpoint.config
    check_tensors(config, source.tensors, naming="hf", origin=str(source.path), ignored=checkpoint.ignored)
    spec = ARCHITECTURES[config.arch]
    wanted = []
    for name, shape in expected_tensors(config).items():
        original = checkpoint.place(name)
        found = checkpoint.reader.tensors[original]
        order = None
        if spec.permuted and is_permuted(name):
            order = RowOrder(config.heads if ".attn_q." in name else config.kv_heads, interleave=True)
        info = TensorInfo(name, shape, found.layout, found.nbytes)
        wanted.append(PlannedTensor(info, original, found.layout, {}, "", order=order))
    for at, (name, factors) in enumerate(rope_tensors(config).items(), 1):
        info = TensorInfo(name, factors.shape, "f32", factors.nbytes)
        wanted.insert(at, PlannedTensor(info, None, "", {}, "", constant=factors.astype(np.float32)))
    return wanted, ModelShape.from_config(config)


def gguf_keys(checkpoint: Checkpoint, pre: str | None) -> dict[str, Value]:
    """The keys of a GGUF file of `checkpoint`. A GGUF source keeps all of its keys.

    pre: name of the pre-tokenizer; None to recognise it from the tokenizer files
    Raises FileError or UnsupportedError for a tokenizer that cannot be read, see `from_hf.read_tokenizer`.
    """
    source = checkpoint.source
    if isinstance(source, GgufSource):
        return {name: value for name, value in source.keys.items() if not is_manifest_key(name)}
    from bitsmith.models.tokenizer.from_hf import read_tokenizer
    from bitsmith.models.tokenizer.to_gguf import vocabulary_keys

    config = checkpoint.config
    assert checkpoint.folder is not None
    fallback = config.decoder.tokenizer
    vocabulary = read_tokenizer(checkpoint.folder, pre=pre, vocab_size=config.vocab, fallback=fallback)
    keys = {**config_to_gguf(config, name=checkpoint.name), **vocabulary_keys(vocabulary)}
    return {"general.type": string("model"), **keys}


def _planned(tensor: PlannedTensor, choice: TypeChoice) -> PlannedTensor:
    """The tensor in its final type. A tensor that is copied needs no codec."""
    kind = TYPES[choice.type]
    row_bytes = kind.row_bytes(tensor.info.cols)
    info = replace(tensor.info, layout=choice.type, nbytes=row_bytes * tensor.info.rows)
    parts = {"data": ((tensor.info.rows, row_bytes), np.dtype(np.uint8))}
    done = replace(tensor, info=info, parts=parts, reason=choice.reason)
    if choice.type in FLOATS or done.verbatim:
        return done
    if choice.type not in CODECS:
        raise UnsupportedError(
            f"{info.name}: bitsmith reads {choice.type} but does not write it; give another type with --rule."
        )
    codec = CODECS[choice.type]
    return replace(done, format=codec.format, codec=codec)


def _warnings(checkpoint: Checkpoint, selection: Selection) -> tuple[str, ...]:
    shape = checkpoint.shape
    told = differences(shape) if isinstance(shape, ModelConfig) else ()
    return (*selection.warnings, *source_warnings(checkpoint, quantizes=selection.mix.quantizes), *told)
