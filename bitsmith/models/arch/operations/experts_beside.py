"""A gated MLP and a mixture of experts side by side, each with its norms; the router reads none of them (Gemma 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.operations.base import BlockTensor, LinearGroup, Run, Tensor
from bitsmith.models.arch.operations.experts import MixtureOfExperts
from bitsmith.models.arch.operations.mlp import GatedMlp

_MLP, _EXPERTS = GatedMlp(), MixtureOfExperts()
_NORMS = "post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"


@dataclass(frozen=True)
class ExpertsBesideMlp:
    """See `bitsmith.models.arch.operations.base.Operation`. norm: name of the norm before the MLP"""

    last = ""

    norm: str

    @property
    def norms(self) -> tuple[str, str, str, str]:
        """The norms before and after the MLP, and before and after the experts."""
        return self.norm, *_NORMS

    def tensors(self, config: ModelConfig, layer: int) -> Iterator[BlockTensor]:
        """Three norms, and the tensors of both."""
        for name in _NORMS:
            yield BlockTensor(name, (config.hidden,), "vector")
        yield from _MLP.tensors(config, layer)
        yield from _EXPERTS.tensors(config, layer)

    def stages(self, config: ModelConfig, layer: int, norm: str) -> tuple[tuple[LinearGroup, ...], ...]:
        """The norm before the MLP feeds nothing else."""
        first, second = _MLP.stages(config, layer, self.norm)
        own = tuple(replace(group, alone=True) for group in first)
        return (own, second, *_EXPERTS.stages(config, layer, ""))

    def forward(self, run: Run, layer: int, block: Any, x: Tensor) -> Tensor:
        """See `Operation`."""
        before_mlp, after_mlp, before_experts, after_experts = (block.norms[name] for name in self.norms)
        eps, norm = run.config.norm_eps, run.ops.rms_norm
        inner = _MLP.forward(run, layer, block, norm(x, before_mlp, eps))
        routes = _EXPERTS.routed(run, layer, block, x)
        chosen = _EXPERTS.mixed(run, block, norm(x, before_experts, eps), routes)
        return norm(inner, after_mlp, eps) + norm(chosen, after_experts, eps)
