"""A mixture of experts: a router chooses for each token the gated MLPs that it passes, and weighs their outputs.

A shared expert that every token passes may stand beside them, weighed by a gate of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitsmith.models.arch.config import Experts, ModelConfig
from bitsmith.models.arch.operations.base import BlockTensor, LinearGroup, Run, Tensor

_GATE, _UP, _DOWN = "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"
SHARED = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
_SHARED_GATE = "ffn_gate_inp_shexp"


class MixtureOfExperts:
    """See `bitsmith.models.arch.operations.base.Operation`."""

    def tensors(self, config: ModelConfig, layer: int) -> Iterator[BlockTensor]:
        """The router and three stacks of matrices; the gate and the matrices of the shared expert."""
        experts, hidden, bias = _experts(config), config.hidden, config.family.expert_bias
        if experts.shared:
            yield BlockTensor(_SHARED_GATE, (1, hidden), "router")
        yield BlockTensor("ffn_gate_inp", (experts.count, hidden), "router", bias)
        for name in (_GATE, _UP):
            yield BlockTensor(name, (experts.count, experts.width, hidden), "experts", bias)
        yield BlockTensor(_DOWN, (experts.count, hidden, experts.width), "experts", bias)
        if experts.shared:
            for name in SHARED[:2]:
                yield BlockTensor(name, (experts.shared, hidden), "linear")
            yield BlockTensor(SHARED[2], (hidden, experts.shared), "linear")

    def stages(self, config: ModelConfig, layer: int, norm: str) -> tuple[tuple[LinearGroup, ...], ...]:
        """Each expert has its own inputs. The norm before them cannot take a scale, since the router reads it too."""
        clamped = config.decoder.activation == "clamped"
        inputs = [
            LinearGroup(f"expert_in.{e}", (f"{_GATE}.{e}", f"{_UP}.{e}"), None, 1, True) for e in _numbers(config)
        ]
        inner = [
            LinearGroup(f"expert_down_input.{e}", (f"{_DOWN}.{e}",), None if clamped else f"{_UP}.{e}", 1, True)
            for e in _numbers(config)
        ]
        if _experts(config).shared:
            inputs.append(LinearGroup("shared_expert_in", SHARED[:2], None))
            inner.append(LinearGroup("shared_expert_down_input", SHARED[2:], SHARED[1]))
        return tuple(inputs), tuple(inner)

    def forward(self, run: Run, layer: int, block: Any, x: Tensor) -> Tensor:
        """See `Operation`. Tokens are gathered by expert, so that each expert's matrices are used once."""
        config, ops, linears = run.config, run.ops, block.linears
        experts, rows = _experts(config), x.reshape(-1, x.shape[-1])
        weights, chosen = ops.route(
            linears["ffn_gate_inp"](rows), experts.used, config.decoder.router, normalize=experts.normalize
        )
        out = ops.zeros(tuple(rows.shape))
        for e in _numbers(config):
            tokens, places = ops.where(chosen == e)
            if not len(tokens):
                continue
            own = rows[tokens]
            inner = ops.gated(linears[f"{_GATE}.{e}"](own), linears[f"{_UP}.{e}"](own), config.activation)
            out = ops.add_rows(out, tokens, linears[f"{_DOWN}.{e}"](inner) * weights[tokens, places][:, None])
        if experts.shared:
            gate, up, down = (linears[name] for name in SHARED)
            share = ops.sigmoid(linears[_SHARED_GATE](rows))
            out = out + down(ops.gated(gate(rows), up(rows), config.activation)) * share
        return out.reshape(x.shape)


def _experts(config: ModelConfig) -> Experts:
    assert config.experts is not None
    return config.experts


def _numbers(config: ModelConfig) -> range:
    return range(_experts(config).count)
