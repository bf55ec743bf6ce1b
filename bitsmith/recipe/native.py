"""Plans for the native container: every format in a safetensors folder, tensor by tensor, any architecture."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bitsmith import __version__
from bitsmith.arch.hf_config import config_to_hf
from bitsmith.arch.names import hf_name, is_permuted
from bitsmith.arch.spec import ARCHITECTURES
from bitsmith.arch.tensors import ROPE_FREQS
from bitsmith.checkpoint import Checkpoint, require_float
from bitsmith.containers import codec_for
from bitsmith.containers.floats import NUMBERS, WRITTEN_FLOATS
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.native import LAYOUT_PREFIX
from bitsmith.containers.native_files import NativeTensor, native_files
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.formats import FORMATS, get_format, resolve
from bitsmith.hf_folder import CONFIG, tokenizer_files
from bitsmith.manifest import Manifest, placeholder
from bitsmith.recipe.plan import Options, Plan, PlannedTensor, RowOrder, Target
from bitsmith.recipe.rules import Rule, first_match, unused_rules

BARE = frozenset({"int8", "int4", "int3", "int2"} | {f"int{bits}-asym" for bits in (8, 4, 3, 2)})
_KEPT = re.compile(r"embed|\bwte\b|\bwpe\b|lm_head|router|\bgate\.weight$|conv|norm")


def plan_native(checkpoint: Checkpoint, target: Target, options: Options) -> Plan:
    """A folder that holds `checkpoint` in the format `target.name`, or in a float type.

    Matrices become the format; embeddings, output head, routers and norms keep the source's float type unless
    --pure (all matrices) or a --rule says otherwise. Raises UsageError (unknown format or rule),
    UnsupportedError (rows that no group divides, a quantized source), FileError (no weights at all).
    """
    if target.name not in WRITTEN_FLOATS:
        get_format(target.name)
    rules = [Rule.parse(text, {*FORMATS, *BARE, *WRITTEN_FLOATS}) for text in options.rules]
    require_float(checkpoint, requantize=options.requantize)
    tensors = tuple(_plan_tensor(t, target, options, rules) for t in _wanted(checkpoint))
    if not any(tensor.info.parameters for tensor in tensors):
        raise FileError(f"{checkpoint.source.path} holds no weights; there is nothing to quantize.")
    names = [tensor.info.name for tensor in tensors]
    vectors = {tensor.info.name for tensor in tensors if _is_vector(tensor)}
    stored = [NativeTensor(tensor.info, tensor.parts) for tensor in tensors]

    def layouts(manifest: Manifest) -> list[FileLayout]:
        return native_files(stored, manifest, max_shard_bytes=options.max_shard_bytes)[0]

    _, index = native_files(stored, placeholder("", "", ()), max_shard_bytes=options.max_shard_bytes)
    return Plan(
        checkpoint=checkpoint,
        target=target,
        recipe=options.recipe(target),
        version=__version__,
        tensors=tensors,
        layouts=layouts,
        extras={**_beside(checkpoint, target), **index},
        warnings=tuple(unused_rules(rules, names, kept=vectors)),
    )


def _wanted(checkpoint: Checkpoint) -> list[PlannedTensor]:
    """Every tensor of the source under its Hugging Face name, still in its own layout.

    A GGUF source of unknown architecture keeps its GGUF names.
    """
    tensors = checkpoint.source.tensors.values()
    if checkpoint.naming == "hf" or isinstance(checkpoint.shape, Exception):
        return [PlannedTensor(info, info.name, info.layout, {}, "") for info in tensors]
    config = checkpoint.config
    wanted = []
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


def _plan_tensor(tensor: PlannedTensor, target: Target, options: Options, rules: Sequence[Rule]) -> PlannedTensor:
    rule = first_match(rules, tensor.info.name)
    if _is_vector(tensor):
        return _as_float(tensor, _own_float(tensor, "f32"), "a vector" if tensor.info.parameters else "empty")
    if rule is not None:
        return _as_type(tensor, rule.type, f"rule '{rule}'")
    if _KEPT.search(tensor.info.name) and not options.pure and target.name not in WRITTEN_FLOATS:
        return _as_float(tensor, _own_float(tensor, "f16"), "embedding, head or router keeps its precision")
    return _as_type(tensor, target.name, "pure" if options.pure else target.name)


def _is_vector(tensor: PlannedTensor) -> bool:
    return len(tensor.info.shape) < 2 or not tensor.info.parameters


def _own_float(tensor: PlannedTensor, otherwise: str) -> str:
    """The float layout a tensor has in the source; `otherwise` where it has none that is written."""
    return tensor.source_layout if tensor.source_layout in WRITTEN_FLOATS else otherwise


def _as_type(tensor: PlannedTensor, name: str, reason: str) -> PlannedTensor:
    if name in WRITTEN_FLOATS:
        return _as_float(tensor, name, reason)
    info = tensor.info
    try:
        format = resolve(name, info.cols)
    except UnsupportedError as error:
        raise UnsupportedError(f"{info.name}: {error}, with --rule '{re.escape(info.name)}=f16'.") from error
    codec = codec_for("native", format)
    parts = codec.layout(info.shape)
    nbytes = sum(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in parts.values())
    info = replace(info, layout=LAYOUT_PREFIX + format.name, nbytes=nbytes)
    return replace(tensor, info=info, parts=parts, reason=reason, format=format, codec=codec)


def _as_float(tensor: PlannedTensor, name: str, reason: str) -> PlannedTensor:
    width = NUMBERS[name].itemsize
    info = replace(tensor.info, layout=name, nbytes=tensor.info.parameters * width)
    parts = {"data": ((info.rows, info.cols * width), np.dtype(np.uint8))}
    return replace(tensor, info=info, parts=parts, reason=reason)


def _beside(checkpoint: Checkpoint, target: Target) -> dict[str, bytes]:
    """config.json, saying how the weights are stored, and the tokenizer's files."""
    if checkpoint.naming == "hf":
        assert checkpoint.folder is not None
        config = dict(checkpoint.hf_config)
        files = {name: path.read_bytes() for name, path in tokenizer_files(checkpoint.folder).items()}
    else:
        config = {} if isinstance(checkpoint.shape, Exception) else config_to_hf(checkpoint.config)
        files = _tokenizer_from_gguf(checkpoint)
    config.pop("quantization_config", None)
    if target.name not in WRITTEN_FLOATS:
        config["quantization_config"] = {"quant_method": "bitsmith", "format": target.name}
    return {CONFIG: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(), **files}


def _tokenizer_from_gguf(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Empty where the file has no vocabulary; weights without one can still be measured and taken apart."""
    from bitsmith.tokenizer import to_hf
    from bitsmith.tokenizer.from_gguf import vocabulary_from_gguf

    metadata = checkpoint.source.metadata
    return to_hf.tokenizer_files(vocabulary_from_gguf(metadata)) if "tokenizer.ggml.model" in metadata else {}
