"""Compares a configuration with the tensors of its file, where transformers and llama.cpp let the tensors decide."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from bitsmith.containers.base import Source
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.names import Names, Naming, beside_decoder, drafts, names_of, skipped
from bitsmith.models.arch.tensors import file_tensors

_CACHE_SCALE = re.compile(r".+\.(k|v|q|prob)_scale")  # of keys and values in a runtime with an FP8 cache
_SLAB = 1 << 22  # number of weights read at once
_NAMED = 3  # number of tensors that a note names


@dataclass(frozen=True)
class Reconciled:
    """A configuration that agrees with its tensors.

    ignored: tensors that the model does not need
    notes: what was decided, a sentence each
    """

    config: ModelConfig
    ignored: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def reconcile(config: ModelConfig, source: Source, *, naming: Naming) -> Reconciled:
    """The configuration with what only the tensors say, and the tensors that the model does not need.

    - Hugging Face folders: if the configuration ties the output head to the embedding, but the file holds another
      head, the head is used, as in transformers 5. GGUF has no such field; its tensors decide.
    - A declared bias that only some layers have is a bias of these layers. llama.cpp and transformers take such files.
    - Buffers, and further tensors that are empty or all zero, are ignored.
    Reads the tensors in question. Everything else that contradicts the configuration is left to `check_tensors`.
    """
    notes: list[str] = []
    names = names_of(config.family).wrapped(source.tensors)
    embedding, head = f"{names.prefix}embed_tokens.weight", f"{names.head}.weight"
    if naming == "hf" and config.tied and head in source.tensors and not _equal(source, embedding, head):
        config = replace(config, tied=False)
        notes.append(
            f"the configuration ties {head} to {embedding}, but the file holds another {head}; it is used, as in "
            "transformers 5"
        )
    config = _with_found_biases(config, source, names if naming == "hf" else None, notes)
    wanted = file_tensors(config, source.tensors, naming).wanted
    ignored, zero, beside, drafting = set(), list[str](), list[str](), list[str]()
    for name in source.tensors:
        if name in wanted:
            continue
        if (naming == "hf" and skipped(name, tied=config.tied)) or _CACHE_SCALE.fullmatch(name):
            ignored.add(name)
        elif naming == "hf" and beside_decoder(name):
            beside.append(name)
        elif config.family.delta and (naming == "hf" or config.drafts) and drafts(name, config.layers):
            drafting.append(name)
        elif _all_zero(source, name):
            ignored.add(name)
            zero.append(name)
    ignored |= {*beside, *drafting}
    if drafting:
        notes.append(
            f"{len(drafting)} tensors ({drafting[0]}, ...) draft several tokens at once, which bitsmith does not do: "
            + (
                "folders keep them unquantized, GGUF files leave them out"
                if naming == "hf"
                else "GGUF files keep them, folders leave them out"
            )
        )
    if beside:
        listed = ", ".join(beside[:_NAMED]) + (", ..." if len(beside) > _NAMED else "")
        notes.append(
            f"{len(beside)} tensors are not of the text decoder but of other parts, for images or sound ({listed}): "
            "GGUF files and runs leave them out, safetensors folders keep them in 16 bits"
        )
    if zero:
        listed = ", ".join(zero[:_NAMED]) + (", ..." if len(zero) > _NAMED else "")
        notes.append(f"{len(zero)} tensors are empty or all zero and not part of the model; ignored: {listed}")
    return Reconciled(config, frozenset(ignored), tuple(notes))


def _with_found_biases(config: ModelConfig, source: Source, names: Names | None, notes: list[str]) -> ModelConfig:
    """The configuration with the declared biases that the file has, if it has some of a kind but not all."""
    declared = [
        f"blk.{layer}.{name}"
        for layer in range(config.layers)
        for name in config.biased_linears
        if config.has_bias(name, layer)
    ]
    found = {linear for linear in declared if _own(f"{linear}.bias", names) in source.tensors}
    changed = config.with_biases(found)
    lost = (config.qkv_bias, config.output_bias, config.mlp_bias) != (
        changed.qkv_bias,
        changed.output_bias,
        changed.mlp_bias,
    )
    if lost or changed == config:  # a kind of which no layer has a bias contradicts the file: `check_tensors` says so
        return config
    notes.append(f"{len(declared) - len(found)} of {len(declared)} linears have no bias, others of their kind do")
    return changed


def _own(name: str, names: Names | None) -> str | None:
    """The file's name of a tensor with this GGUF name. names: None if the file's names are GGUF's"""
    return name if names is None else names.hf(name)


def _equal(source: Source, one: str, other: str) -> bool:
    """Whether two matrices have the same values. Different layouts are compared after decoding."""
    if one not in source.tensors or source.tensors[one].shape != source.tensors[other].shape:
        return False
    info = source.tensors[one]
    same_layout = info.layout == source.tensors[other].layout
    step = max(1, _SLAB // max(info.cols, 1))
    for start in range(0, info.rows, step):
        stop = min(start + step, info.rows)
        if same_layout:
            first, second = source.packed(one, start, stop).parts, source.packed(other, start, stop).parts
            alike = all(np.array_equal(_raw(first[part]), _raw(second[part])) for part in first)
        else:
            alike = np.array_equal(source.rows(one, start, stop), source.rows(other, start, stop))
        if not alike:
            return False
    return True


def _all_zero(source: Source, name: str) -> bool:
    """Whether a tensor is empty or has only zero bytes. Stops at the first other byte."""
    info = source.tensors[name]
    step = max(1, _SLAB // max(info.cols, 1))
    for start in range(0, info.rows, step):
        parts = source.packed(name, start, min(start + step, info.rows)).parts
        if any(_raw(part).any() for part in parts.values()):
            return False
    return True


def _raw(part: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)
