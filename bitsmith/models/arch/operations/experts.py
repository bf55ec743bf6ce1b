"""A mixture of experts: a router chooses for each token the gated MLPs that it passes, and weighs their outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitsmith.models.arch.config import Experts, ModelConfig
from bitsmith.models.arch.operations.base import BlockTensor, LinearGroup, Run, Tensor

_GATE, _UP, _DOWN = "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"


class MixtureOfExperts:
    """See `bitsmith.models.arch.operations.base.Operation`."""

    def tensors(self, config: ModelConfig, layer: int) -> Iterator[BlockTensor]:
        """The router and three stacks of matrices."""
        experts, hidden, bias = _experts(config), config.hidden, config.family.expert_bias
        yield BlockTensor("ffn_gate_inp", (experts.count, hidden), "router", bias)
        for name in (_GATE, _UP):
            yield BlockTensor(name, (experts.count, experts.width, hidden), "experts", bias)
        yield BlockTensor(_DOWN, (experts.count, hidden, experts.width), "experts", bias)

    def stages(self, config: ModelConfig, layer: int, norm: str) -> tuple[tuple[LinearGroup, ...], ...]:
        """Each expert has its own inputs. The norm before them cannot take a scale, since the router reads it too."""
        clamped = config.decoder.activation == "clamped"
        inputs = (
            LinearGroup(f"expert_in.{e}", (f"{_GATE}.{e}", f"{_UP}.{e}"), None, 1, True, "expert_in")
            for e in _numbers(config)
        )
        inner = (
            LinearGroup(f"expert_down_input.{e}", (f"{_DOWN}.{e}",), None if clamped else f"{_UP}.{e}", 1, True)
            for e in _numbers(config)
        )
        return tuple(inputs), tuple(inner)

    def forward(self, run: Run, layer: int, block: Any, x: Tensor) -> Tensor:
        """See `Operation`. Tokens are gathered by expert, so that each expert's matrices are used once."""
        config, ops, linears = run.config, run.ops, block.linears
        experts, rows = _experts(config), x.reshape(-1, x.shape[-1])
        weights, chosen = ops.route(
            linears["ffn_gate_inp"](rows), experts.used, config.decoder.router, normalize=experts.normalize
        )
        run.routed(layer, chosen)
        out = ops.zeros(tuple(rows.shape))
        for e in _numbers(config):
            tokens, places = ops.where(chosen == e)
            if run.every_expert:
                found = _expert(run, linears, e, rows)[tokens]
            elif len(tokens):
                found = _expert(run, linears, e, rows[tokens])
            else:
                continue
            out = ops.add_rows(out, tokens, found * weights[tokens, places][:, None])
        return out.reshape(x.shape)


def _expert(run: Run, linears: Any, e: int, rows: Tensor) -> Tensor:
    """The output of one expert: [tokens, hidden] -> the same."""
    inner = run.ops.gated(linears[f"{_GATE}.{e}"](rows), linears[f"{_UP}.{e}"](rows), run.config.activation)
    return linears[f"{_DOWN}.{e}"](inner)


def _experts(config: ModelConfig) -> Experts:
    assert config.experts is not None
    return config.experts


def _numbers(config: ModelConfig) -> range:
    return range(_experts(config).count)
