"""Shared parts of the plans of all safetensors folders: Hugging Face names, config.json, tokenizer files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np

from bitsmith.containers.floats import MXFP4_STACK, NUMBERS, WRITTEN_FLOATS
from bitsmith.containers.hf_folder import CONFIG, tokenizer_files
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.hf_config_writer import config_to_hf
from bitsmith.models.arch.names import beside_decoder, drafts, is_permuted
from bitsmith.models.arch.sources import hf_tensors_of_gguf
from bitsmith.models.arch.tensors import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, check_tensors, expected_tensors
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.plan import PlannedTensor, RowOrder

KEPT = re.compile(
    r"embed|\bwte\b|\bwpe\b|lm_head|per_layer_model_projection|router|\bgate\.weight$|conv|norm"
    r"|shared_expert_gate\.weight$|linear_attn\.in_proj_(a|b|ba)\.weight$"  # a few rows that steer all others
    r"|_embd\.weight$|^output\.weight$|ffn_gate_inp|ssm_(alpha|beta|ba)\.weight$"  # GGUF's names
)


_NO_LINEAR = re.compile(r"embed|\bwte\b|\bwpe\b|conv|norm")


def is_linear(info: TensorInfo) -> bool:
    """Whether readers treat a tensor of a folder as a linear layer, by its name and shape."""
    return len(info.shape) > 1 and info.name.endswith(".weight") and not _NO_LINEAR.search(info.name)


_TRANSPOSED = frozenset({"gpt2", "imagegpt", "openai-gpt", "decision_transformer"})  # by model_type


def transposed_layers(checkpoint: Checkpoint) -> str:
    """What to say of a folder whose linear layers are stored as [in, out]; "" if they are not."""
    found = checkpoint.hf_config.get("model_type")
    return f"the layers of {found} lie transposed (Conv1D)" if found in _TRANSPOSED else ""


def guessed_linears(checkpoint: Checkpoint, tensors: Sequence[PlannedTensor]) -> tuple[str, ...]:
    """The warning of a model whose architecture is unknown: which matrices got codes. tensors: as planned"""
    coded = [tensor.info.name for tensor in tensors if tensor.format is not None]
    if not isinstance(checkpoint.shape, Exception) or not coded:
        return ()
    names = "GGUF's names stay, and there is no config.json: only bitsmith reads the folder; "
    return (
        f"{names if checkpoint.naming == 'gguf' else ''}{len(coded)} matrices were taken for linear layers by their "
        f"names and shapes, the first is {coded[0]}; --dry-run lists them all",
    )


def wanted_tensors(checkpoint: Checkpoint, *, quantizes: bool = True) -> list[PlannedTensor]:
    """Every tensor of the source with its Hugging Face name and the layout of the source.

    quantizes: whether matrices get codes; stacks of experts are then taken apart, since no container has codes for them
    A GGUF source of unknown architecture keeps its GGUF names. Raises UnsupportedError for a tensor without a Hugging
    Face name, FileError for a GGUF source, or stacks of experts, that contradict the configuration.
    """
    tensors = checkpoint.source.tensors.values()
    if isinstance(checkpoint.shape, Exception):
        return [PlannedTensor(info, info.name, info.layout, {}, "") for info in tensors]
    config, names = checkpoint.config, checkpoint.names
    if checkpoint.naming == "hf":
        stack = next((info.name for info in tensors if info.layout == MXFP4_STACK), None)
        if stack is not None:
            raise UnsupportedError(
                f"{checkpoint.source.path}: {stack} is MXFP4, and transformers would expect it transposed in another "
                "type; write a GGUF file, for instance --to=q4_k_m."
            )
        row = config.decoder.experts
        transposed = row is not None and row.interleaved
        further = {info.name for info in tensors if config.family.delta and drafts(info.name, config.layers)}
        apart = checkpoint.apart if quantizes else {}
        if apart:  # the configuration says how many matrices the stacks hold
            origin = str(checkpoint.source.path)
            check_tensors(config, checkpoint.source.tensors, naming="hf", origin=origin, ignored=checkpoint.ignored)
            return [each for info in tensors for each in _taken_apart(checkpoint, info, apart, further)]
        return [_of_folder(info, names.gguf(info.name), transposed, further) for info in tensors]
    places, _ = hf_tensors_of_gguf(config)
    known = {*expected_tensors(config), ROPE_FREQS, ROPE_LONG, ROPE_SHORT}  # the last ones stand in config.json
    left = {info.name for info in tensors if config.drafts and drafts(info.name, config.layers)}
    known |= {*checkpoint.stored, *left}
    stranger = next((info.name for info in tensors if info.name not in known), None)
    if stranger is not None:
        raise UnsupportedError(
            f"{checkpoint.source.path}: {stranger} has no Hugging Face name; write a GGUF file, for instance "
            "--to=q4_k_m."
        )
    check_tensors(config, checkpoint.source.tensors, origin=str(checkpoint.source.path), ignored=checkpoint.ignored)
    reader, wanted = checkpoint.reader, list[PlannedTensor]()
    for name, place in places.items():
        info, ours = reader.tensors[place], names.gguf(name) or ""
        order = None
        if config.decoder.permuted and is_permuted(ours):
            order = RowOrder(config.heads if ".attn_q." in ours else config.kv_heads, interleave=False)
        wanted.append(PlannedTensor(replace(info, name=name), place, info.layout, {}, "", order=order, own=ours))
    return wanted


def _taken_apart(
    checkpoint: Checkpoint, info: TensorInfo, apart: Mapping[str, Mapping[str, str]], further: Set[str]
) -> Iterator[PlannedTensor]:
    """A tensor of a folder with stacks, as folders with experts one by one have it; the matrices of a stack."""
    if info.name not in apart:
        own = checkpoint.names.gguf(info.name)
        planned = _of_folder(info, own, False, further)
        name = None if own is None else checkpoint.published.hf(own)
        yield planned if name is None else replace(planned, info=replace(info, name=name))
        return
    for name, own in apart[info.name].items():
        found = checkpoint.reader.tensors[name]
        yield PlannedTensor(found, name, found.layout, {}, "", own=own)


def _of_folder(info: TensorInfo, own: str | None, transposed: bool, further: Set[str]) -> PlannedTensor:
    """A tensor of a folder.

    own: its GGUF name, if the family has one for it
    transposed: whether the family's stacks lie transposed
    further: tensors of layers that draft tokens
    """
    beside = beside_decoder(info.name) or info.name in further
    outside = own is None and (beside or (transposed and len(info.shape) > 2))
    return PlannedTensor(info, info.name, info.layout, {}, "", own=own or "", outside=outside)


def is_vector(tensor: PlannedTensor) -> bool:
    """Whether the tensor has fewer than two dimensions, or no weights, or holds vectors: biases of experts."""
    return len(tensor.info.shape) < 2 or not tensor.info.parameters or tensor.info.name.endswith("bias")


def own_float(tensor: PlannedTensor, otherwise: str) -> str:
    """The tensor's float layout in the source; `otherwise` if it is not one of WRITTEN_FLOATS."""
    return tensor.source_layout if tensor.source_layout in WRITTEN_FLOATS else otherwise


def as_float(tensor: PlannedTensor, name: str, reason: str) -> PlannedTensor:
    """The tensor in a float type of WRITTEN_FLOATS."""
    width = NUMBERS.width(name)
    info = replace(tensor.info, layout=name, nbytes=tensor.info.parameters * width)
    parts = {"data": ((info.rows, info.cols * width), np.dtype(np.uint8))}
    return replace(tensor, info=info, parts=parts, reason=reason)


def copied(tensor: PlannedTensor, reason: str) -> PlannedTensor:
    """The tensor as it is, in one entry, without a look at its values."""
    info = tensor.info
    parts = {"data": ((info.rows, info.nbytes // max(info.rows, 1)), np.dtype(np.uint8))}
    return replace(tensor, parts=parts, reason=reason, copied=True)


def model_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json for the model, without the quantization fields of the source."""
    if checkpoint.naming == "hf":
        config = dict(checkpoint.hf_config)
        assert checkpoint.folder is not None
        if not config and isinstance(checkpoint.shape, FileError) and (checkpoint.folder / CONFIG).exists():
            raise checkpoint.shape  # there is one, and it cannot be read
    else:
        config = {} if isinstance(checkpoint.shape, Exception) else config_to_hf(checkpoint.config)
    if config.get("tie_word_embeddings") and isinstance(checkpoint.shape, ModelConfig) and not checkpoint.shape.tied:
        config["tie_word_embeddings"] = False  # the file's own head is used; vLLM would drop it
    config.pop("quantization_config", None)
    config.pop("compression_config", None)
    config.pop("quantization", None)
    return config


def beside(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, bytes]:
    """The small files of the folder: `config` as config.json, and the tokenizer files."""
    if checkpoint.naming == "hf":
        assert checkpoint.folder is not None
        files = tokenizer_files(checkpoint.folder)
    else:
        files = _tokenizer_from_gguf(checkpoint)
    return {CONFIG: as_json(config), **files}


def as_json(config: Mapping[str, Any]) -> bytes:
    """JSON in the form in which transformers writes its small files."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _tokenizer_from_gguf(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Tokenizer files made from a GGUF file. Empty if it has no vocabulary; its weights can still be quantized."""
    from bitsmith.models.tokenizer import to_hf
    from bitsmith.models.tokenizer.from_gguf import vocabulary_from_gguf

    metadata = checkpoint.source.metadata
    return to_hf.tokenizer_files(vocabulary_from_gguf(metadata)) if "tokenizer.ggml.model" in metadata else {}
