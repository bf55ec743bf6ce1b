"""Assignments that keep every tensor's bytes: to merge, split or rename a model of any format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bitsmith.containers import module_containers
from bitsmith.containers.gguf.metadata_values import string
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.gguf.writer import gguf_layout
from bitsmith.containers.hf_files import StoredTensor, folder_files
from bitsmith.containers.hf_folder import CONFIG, read_file, tokenizer_files
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.manifest import JSON_KEY, Manifest, is_manifest_key, placeholder, to_gguf_keys
from bitsmith.containers.native import LAYOUT_PREFIX, SHAPES_KEY, TENSORS_KEY
from bitsmith.containers.native import metadata as native_metadata
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.models.manifests import recipe_of
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.folder import copied
from bitsmith.recipe.plan import Assignment, PlannedTensor
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.target import Target

SAME = "same"  # the name in a target that keeps every byte
_INDEX = ".index.json"  # indices of weight files; the new index replaces them


def assign_copy(checkpoint: Checkpoint, options: PlanOptions) -> Assignment:
    """The assignment that keeps the container, the types and the bytes of every tensor of `checkpoint`.

    Of the options it reads max_shard_bytes, filename and model_name. Raises FileError for a source without tensors.
    """
    source = checkpoint.source
    if not source.tensors:
        raise FileError(f"{source.path} holds no tensors; there is nothing to copy.")
    if isinstance(source, GgufSource):
        return _gguf(checkpoint, source, options)
    if isinstance(source, SafetensorsSource):
        return _folder(checkpoint, source, options)
    raise UnsupportedError(f"{source.path}: only GGUF and safetensors files can be copied.")


def _gguf(checkpoint: Checkpoint, source: GgufSource, options: PlanOptions) -> Assignment:
    keys = {name: value for name, value in source.keys.items() if not is_manifest_key(name)}
    if options.model_name is not None:
        named = {"general.name": string(options.model_name)}
        keys = {name: named.get(name, value) for name, value in keys.items()} | named
    infos = list(source.tensors.values())

    def layouts(manifest: Manifest) -> list[FileLayout]:
        found = {**keys, **to_gguf_keys(manifest)}
        return gguf_layout(options.filename, found, infos, max_shard_bytes=options.max_shard_bytes)

    tensors = tuple(_copied(info) for info in infos)
    return Assignment(checkpoint, Target("gguf", SAME), options, tensors, layouts, {}, keys=keys)


def _copied(info: TensorInfo) -> PlannedTensor:
    return copied(PlannedTensor(info, info.name, info.layout, {}, ""), "copied")


def _folder(checkpoint: Checkpoint, source: SafetensorsSource, options: PlanOptions) -> Assignment:
    pairs = list(_stored(source))
    tensors = tuple(tensor for tensor, _ in pairs)
    stored = [each for _, each in pairs]
    merged = {name: text for name, text in source.metadata.items() if name not in (JSON_KEY, TENSORS_KEY, SHAPES_KEY)}

    def metadata(infos: Sequence[TensorInfo]) -> Mapping[str, str]:
        own = {
            info.name: (info.layout.removeprefix(LAYOUT_PREFIX), info.shape)
            for info in infos
            if info.layout.startswith(LAYOUT_PREFIX)
        }
        return {**merged, **(native_metadata(own) if own else {})}

    def files(manifest: Manifest) -> tuple[list[FileLayout], dict[str, bytes]]:
        return folder_files(stored, manifest, metadata=metadata, max_shard_bytes=options.max_shard_bytes)

    _, index = files(placeholder("", "", ()))
    assert checkpoint.folder is not None
    return Assignment(
        checkpoint,
        Target(_container(checkpoint), SAME),
        options,
        tensors,
        lambda manifest: files(manifest)[0],
        {**_small_files(checkpoint.folder), **index},
    )


def _stored(source: SafetensorsSource) -> Iterator[tuple[PlannedTensor, StoredTensor]]:
    """Every tensor and how it is stored, in the source's order; entries beside a weight follow it."""
    further = source.further
    for info in source.tensors.values():
        weight = source.stored_as(info.name)
        if weight is None:
            yield _plain(info)
            continue
        parts = weight.codec.layout(info.shape)
        planned = PlannedTensor(info, info.name, info.layout, parts, "copied", codec=weight.codec, copied=True)
        yield planned, StoredTensor(info, parts, weight.entries)
        for name in weight.beside:
            yield _plain(further[name])


def _plain(info: TensorInfo) -> tuple[PlannedTensor, StoredTensor]:
    planned = _copied(info)
    return planned, StoredTensor(info, planned.parts, {})


def _container(checkpoint: Checkpoint) -> str:
    """The container of a folder, by its configuration; "native" for floats and for all others."""
    found = checkpoint.hf_config.get("quantization_config")
    method = found.get("quant_method") if isinstance(found, dict) else None
    return next((name for name, each in module_containers().items() if each.quant_method == method), "native")


def _small_files(folder: Path) -> dict[str, bytes]:
    """config.json as it is, the tokenizer's files, and every other small JSON file of the folder."""
    others = [path.name for path in sorted(folder.glob("*.json")) if path.is_file() and not path.name.endswith(_INDEX)]
    found = tokenizer_files(folder)
    found |= {name: read_file(folder / name) for name in others if name not in found}
    first = [CONFIG] if CONFIG in found else []
    return {name: found[name] for name in dict.fromkeys([*first, *found])}


def as_conversion(assignment: Assignment) -> Assignment:
    """The assignment as `convert` makes it: its manifest keeps the recipe of the source."""
    try:
        origin, warnings = recipe_of(assignment.checkpoint.source), assignment.warnings
    except FileError as error:
        origin, warnings = None, (*assignment.warnings, f"the recipe of the source is not kept: {error}")
    return replace(assignment, command="convert", origin=origin, warnings=warnings)
