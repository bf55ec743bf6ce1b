"""A mixture of experts: a router chooses for each token the gated MLPs that it passes, and weighs their outputs.

A shared expert that every token passes may stand beside them, weighed by a gate of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitsmith.models.arch.config import Experts, ModelConfig
from bitsmith.models.arch.family import ExpertRow
from bitsmith.models.arch.operations.base import BlockTensor, LinearGroup, Run, Tensor

_GATE, _UP, _DOWN, _BOTH = "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps"
_ROUTER = "ffn_gate_inp"
ROUTER_SCALE, EXPERT_SCALE = f"{_ROUTER}.scale", f"{_DOWN}.scale"  # of scaled routers, see `ExpertRow`
SHARED, _SHARED_GATE = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"), "ffn_gate_inp_shexp"
Routes = tuple[Tensor, Tensor]  # weights and numbers of the chosen experts, [tokens, used] each


class MixtureOfExperts:
    """See `bitsmith.models.arch.operations.base.Operation`."""

    last = ""

    def tensors(self, config: ModelConfig, layer: int) -> Iterator[BlockTensor]:
        """The router and stacks of matrices; the gate and the matrices of the shared expert."""
        experts, hidden, bias = _experts(config), config.hidden, config.family.expert_bias
        if _row(config).scaled:
            yield BlockTensor(_ROUTER, (hidden,), "vector", ending="scale")
            yield BlockTensor(_DOWN, (experts.count,), "vector", ending="scale")
        if experts.shared:
            yield BlockTensor(_SHARED_GATE, (1, hidden), "router")
        yield BlockTensor(_ROUTER, (experts.count, hidden), "router", bias)
        inner = {_BOTH: 2 * experts.width} if _row(config).fused else {_GATE: experts.width, _UP: experts.width}
        for name, rows in inner.items():
            yield BlockTensor(name, (experts.count, rows, hidden), "experts", bias)
        yield BlockTensor(_DOWN, (experts.count, hidden, experts.width), "experts", bias)
        if experts.shared:
            for name in SHARED[:2]:
                yield BlockTensor(name, (experts.shared, hidden), "linear")
            yield BlockTensor(SHARED[2], (hidden, experts.shared), "linear")

    def stages(self, config: ModelConfig, layer: int, norm: str) -> tuple[tuple[LinearGroup, ...], ...]:
        """Each expert has its own inputs. The norm before them cannot take a scale, since the router reads it too."""
        fused = _row(config).fused
        takes = config.decoder.activation != "clamped" and not fused
        names = (_BOTH,) if fused else (_GATE, _UP)
        inputs = [
            LinearGroup(f"expert_in.{e}", tuple(f"{name}.{e}" for name in names), None, 1, True, "expert_in")
            for e in _numbers(config)
        ]
        inner = [
            LinearGroup(f"expert_down_input.{e}", (f"{_DOWN}.{e}",), f"{_UP}.{e}" if takes else None, 1, True)
            for e in _numbers(config)
        ]
        if _experts(config).shared:
            inputs.append(LinearGroup("shared_expert_in", SHARED[:2], None))
            inner.append(LinearGroup("shared_expert_down_input", SHARED[2:], SHARED[1]))
        return tuple(inputs), tuple(inner)

    def forward(self, run: Run, layer: int, block: Any, x: Tensor) -> Tensor:
        """See `Operation`."""
        return self.mixed(run, block, x, self.routed(run, layer, block, x))

    def routed(self, run: Run, layer: int, block: Any, x: Tensor) -> Routes:
        """The experts of each token, x: [batch, n, hidden]. A scaled router norms its input itself."""
        config, ops, experts = run.config, run.ops, _experts(run.config)
        rows = x.reshape(-1, x.shape[-1])
        scaled = _row(config).scaled
        if scaled:
            rows = ops.unit(rows, config.norm_eps) * block.norms[ROUTER_SCALE] * config.hidden**-0.5
        weights, chosen = ops.route(
            block.linears[_ROUTER](rows), experts.used, config.decoder.router, normalize=experts.normalize
        )
        run.routed(layer, chosen)
        return weights * block.norms[EXPERT_SCALE][chosen] if scaled else weights, chosen

    def mixed(self, run: Run, block: Any, x: Tensor, routes: Routes) -> Tensor:
        """The weighted outputs of the chosen experts: [batch, n, hidden] -> the same.

        Tokens are gathered by expert, so that each expert's matrices are used once.
        """
        config, ops = run.config, run.ops
        rows, (weights, chosen) = x.reshape(-1, x.shape[-1]), routes
        out = ops.zeros(tuple(rows.shape))
        for e in _numbers(config):
            tokens, places = ops.where(chosen == e)
            if run.every_expert:
                found = self._expert(run, block, e, rows)[tokens]
            elif len(tokens):
                found = self._expert(run, block, e, rows[tokens])
            else:
                continue
            out = ops.add_rows(out, tokens, found * weights[tokens, places][:, None])
        if _experts(config).shared:
            gate, up, down = (block.linears[name] for name in SHARED)
            share = ops.sigmoid(block.linears[_SHARED_GATE](rows))
            out = out + down(ops.gated(gate(rows), up(rows), config.activation)) * share
        return out.reshape(x.shape)

    def _expert(self, run: Run, block: Any, e: int, own: Tensor) -> Tensor:
        """The output of one expert: [tokens, hidden] -> the same."""
        return block.linears[f"{_DOWN}.{e}"](self._inner(run, block, e, own))

    def _inner(self, run: Run, block: Any, e: int, own: Tensor) -> Tensor:
        """The input of an expert's last matrix: [tokens, hidden] -> [tokens, width]."""
        config, linears = run.config, block.linears
        if _row(config).fused:
            both, width = linears[f"{_BOTH}.{e}"](own), _experts(config).width
            return run.ops.gated(both[..., :width], both[..., width:], config.activation)
        return run.ops.gated(linears[f"{_GATE}.{e}"](own), linears[f"{_UP}.{e}"](own), config.activation)


def _experts(config: ModelConfig) -> Experts:
    assert config.experts is not None
    return config.experts


def _row(config: ModelConfig) -> ExpertRow:
    assert config.decoder.experts is not None
    return config.decoder.experts


def _numbers(config: ModelConfig) -> range:
    return range(_experts(config).count)
