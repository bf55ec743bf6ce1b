"""A block: a list of operations, each with its norms and a residual connection around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.operations.attention import Attention
from bitsmith.models.arch.operations.base import BlockTensor, LinearGroup, Operation
from bitsmith.models.arch.operations.delta import GatedDeltaNet
from bitsmith.models.arch.operations.experts import MixtureOfExperts
from bitsmith.models.arch.operations.experts_beside import ExpertsBesideMlp
from bitsmith.models.arch.operations.layer_embedding import LayerEmbedding
from bitsmith.models.arch.operations.mlp import GatedMlp

ATTENTION, DELTA, MLP, EXPERTS = Attention(), GatedDeltaNet(), GatedMlp(), MixtureOfExperts()
LAYER_EMBEDDING = LayerEmbedding()
SCALE = "layer_output_scale"  # of what a layer gives, in some families


@dataclass(frozen=True)
class Part:
    """(x + norm(operation(norm(x)))) * scale.

    before, after: names of the norms; "" for none
    scale: name of a vector of one number; "" for none
    """

    operation: Operation
    before: str
    after: str
    scale: str = ""


def parts_of(config: ModelConfig, layer: int) -> tuple[Part, ...]:
    """The parts of a block, in the order of computation."""
    norms, spec = config.family.norms, config.specs[layer]
    parts = [Part(DELTA if spec.mixer == "delta" else ATTENTION, norms.before_attention, norms.after_attention)]
    if spec.experts and config.decoder.experts is not None and config.decoder.experts.beside:
        parts.append(Part(ExpertsBesideMlp(norms.before_mlp), "", norms.after_mlp))
    else:
        parts.append(Part(EXPERTS if spec.experts else MLP, norms.before_mlp, norms.after_mlp))
    if config.layer_width:
        parts.append(Part(LAYER_EMBEDDING, "", "post_norm"))
    if config.decoder.layer_scale:
        parts[-1] = replace(parts[-1], scale=SCALE)
    return tuple(parts)


def block_tensors(config: ModelConfig, layer: int) -> Iterator[BlockTensor]:
    """The tensors of a block: norms and other vectors first, then matrices, in the order of computation."""
    parts = parts_of(config, layer)
    for norm in config.family.norms.names:
        yield BlockTensor(norm, (config.hidden,), "vector")
    if config.decoder.layer_scale:
        yield BlockTensor(SCALE, (1,), "vector")
    found = [tensor for part in parts for tensor in part.operation.tensors(config, layer)]
    yield from (tensor for tensor in found if tensor.kind == "vector")
    yield from (tensor for tensor in found if tensor.kind != "vector")


def linear_shapes(config: ModelConfig, layer: int) -> dict[str, tuple[int, int]]:
    """[rows, cols] of every linear of a block that is quantized; experts one by one."""
    shapes: dict[str, tuple[int, int]] = {}
    for tensor in block_tensors(config, layer):
        rows, cols = tensor.shape[-2:] if tensor.kind != "vector" else (0, 0)
        if tensor.kind == "linear":
            shapes[tensor.name] = (rows, cols)
        elif tensor.kind == "experts":
            shapes |= {f"{tensor.name}.{e}": (rows, cols) for e in range(tensor.shape[0])}
    return shapes


def with_shared_inputs(groups: Iterable[LinearGroup]) -> tuple[LinearGroup, ...]:
    """The groups of linears where every token passes every expert: those that a router would split are one."""
    joined: dict[str, list[LinearGroup]] = {}
    for group in groups:
        joined.setdefault(group.shared or group.name, []).append(group)
    return tuple(
        each[0] if len(each) == 1 else LinearGroup(name, tuple(n for group in each for n in group.linears), None)
        for name, each in joined.items()
    )


def part_groups(config: ModelConfig, layer: int, part: Part) -> tuple[LinearGroup, ...]:
    """The groups of one part, in the order of computation."""
    return tuple(group for stage in part.operation.stages(config, layer, part.before) for group in stage)


def linear_groups(config: ModelConfig, layer: int = 0) -> tuple[LinearGroup, ...]:
    """The groups of a block, in the order of computation."""
    return tuple(group for part in parts_of(config, layer) for group in part_groups(config, layer, part))


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape (row-major, [rows, cols]) of every tensor of the model by GGUF name, in file order.

    A tied model has no "output.weight". rope_freqs.weight is left out, since it is computed from the config.
    """
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab, config.hidden)}
    for layer in range(config.layers):
        for tensor in block_tensors(config, layer):
            shapes[f"blk.{layer}.{tensor.stored}"] = tensor.shape
            if tensor.bias:
                shapes[f"blk.{layer}.{tensor.name}.bias"] = tensor.shape[:-1]
    if config.layer_width:
        width = config.layers * config.layer_width
        shapes["per_layer_token_embd.weight"] = (config.vocab, width)
        shapes["per_layer_model_proj.weight"] = (width, config.hidden)
        shapes["per_layer_proj_norm.weight"] = (config.layer_width,)
    shapes["output_norm.weight"] = (config.hidden,)
    if not config.tied:
        shapes["output.weight"] = (config.vocab, config.hidden)
    return shapes
