"""Makes a Network of a family whose layers differ in their shapes (Gemma 4), from what the decoder itself reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bitsmith.models.arch.block import expected_tensors
from bitsmith.models.arch.config import LayerSpec, ModelConfig
from bitsmith.models.arch.family import Family
from bitsmith.models.arch.gguf_config import rope_tensors
from bitsmith.models.arch.hf_config import config_from_hf
from bitsmith.models.arch.names import beside_decoder, names_of
from bitsmith.planner.network import LayerCache, Network
from bitsmith.planner.numbers import Numbers
from bitsmith.quant.tensor import TensorInfo


def has_layer_facts(family: Family) -> bool:
    """Whether layers of the family differ in their shapes."""
    return family.decoder is not None and family.decoder.layer_facts


def layered_network(
    config: Mapping[str, Any],
    numbers: Numbers,
    *,
    name: str,
    origin: str,
    tensors: Iterable[TensorInfo] | None = None,
) -> Network:
    """The network of a config.json.

    tensors: those of its weight files, under the file's names; None: those that the configuration promises
    Raises FileError and UnsupportedError as the decoder does.
    """
    model = config_from_hf(config, origin=origin)
    if tensors is None:
        found = tuple(TensorInfo(own, shape, "", 0) for own, shape in expected_tensors(model).items())
    else:
        found = _renamed(model, tuple(tensors))
    experts = model.experts
    inner = max(spec.intermediate for spec in model.specs)
    factors = rope_tensors(model).items()
    return Network(
        name=name,
        arch=model.family.gguf,
        hidden=model.hidden,
        vocab=model.vocab,
        context=numbers.context or model.context,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=max(spec.head_dim for spec in model.specs),
        intermediate=inner if experts is None else inner + experts.used * experts.width,
        caches=tuple(_cache(spec) for spec in model.specs),
        tensors=found,
        experts=0 if experts is None else experts.count,
        experts_used=0 if experts is None else experts.used,
        rotary=tuple(TensorInfo(own, values.shape, "f32", values.nbytes) for own, values in factors),
    )


def _cache(spec: LayerSpec) -> LayerCache:
    width = spec.kv_heads * spec.head_dim
    return LayerCache() if spec.keys_of is not None else LayerCache(width, width, spec.window)


def _renamed(model: ModelConfig, tensors: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
    names = names_of(model.family).wrapped({tensor.name for tensor in tensors})

    def own(name: str) -> str:
        return f"vision.{name}" if beside_decoder(name) else names.gguf(name) or name

    return tuple(replace(tensor, name=own(tensor.name)) for tensor in tensors)
