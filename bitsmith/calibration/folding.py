"""Folds rescalings into a loaded block, so that it computes the same with other weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch

from bitsmith.calibration.transforms.base import Rescaling
from bitsmith.calibration.transforms.fold import fold, storable
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.names import in_stack
from bitsmith.runtime.weights import Block


def block_tensors(block: Block) -> dict[str, np.ndarray]:
    """Matrices, biases and norms of a block, float32 by GGUF name without "blk.N."; not copied on a CPU."""
    tensors = {f"{name}.weight": _numpy(values) for name, values in block.norms.items()}
    for name, linear in block.linears.items():
        tensors[f"{name}.weight"] = _numpy(linear.prepared)
        if linear.bias is not None:
            tensors[f"{name}.bias"] = _numpy(linear.bias)
    return tensors


def with_tensors(block: Block, tensors: Mapping[str, np.ndarray]) -> Block:
    """The block with some of its tensors replaced; names as in `block_tensors`."""
    found = {name: torch.as_tensor(values, device=block.device) for name, values in tensors.items()}
    norms = {name: found[f"{name}.weight"] for name in block.norms if f"{name}.weight" in found}
    linears = {
        name: replace(
            linear,
            prepared=found.get(f"{name}.weight", linear.prepared),
            bias=found.get(f"{name}.bias", linear.bias),
        )
        for name, linear in block.linears.items()
    }
    return block.with_norms(norms).with_linears(linears)


def with_whole_stacks(changed: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`changed`, with all matrices of a stack of experts of which some are in it, in the stack's order.

    tensors: all tensors of the block, with names as in `block_tensors`
    A file may hold the stack as one tensor, which is written whole.
    """
    stacks = {found[0] for name in changed if (found := in_stack(name)) is not None}
    whole = [(found, name) for name in tensors if (found := in_stack(name)) is not None and found[0] in stacks]
    others = {name: values for name, values in changed.items() if in_stack(name) is None}
    return others | {name: changed.get(name, tensors[name]) for _, name in sorted(whole)}


def folded(
    block: Block,
    rescalings: Iterable[Rescaling],
    config: ModelConfig,
    stored: Mapping[str, np.dtype],
    *,
    stored_offset: bool = False,
) -> dict[str, np.ndarray]:
    """The tensors that rescalings change, with names as in `block_tensors`; empty if nothing changes.

    stored: float16 or bfloat16 by norm ("attn_norm"), for norms stored in these types; factors are then chosen so
        that the type holds the new norm exactly
    stored_offset: whether norms are stored as the family's Hugging Face files store them, see `Decoder.norm_offset`
    """
    tensors = block_tensors(block)
    changed: dict[str, np.ndarray] = {}
    for rescaling in rescalings:
        if not rescaling.changes:
            continue
        producer, scale = rescaling.group.producer, rescaling.scale
        if producer is not None and producer in block.norms and producer in stored:
            offset = config.norm_offset(f"{producer}.weight") if stored_offset else 0.0
            scale = storable(scale, tensors[f"{producer}.weight"], stored[producer], offset=offset)
        now = fold(rescaling.group, scale, tensors, config)
        tensors.update(now)
        changed.update(now)
    return changed


def _numpy(x: torch.Tensor) -> np.ndarray:
    return np.asarray(x.detach().cpu().numpy())
