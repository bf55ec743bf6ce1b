"""The gated MLP: down(act(gate(x)) * up(x)) (Shazeer 2020). Gate and up may be one matrix, the gate's rows first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.operations.base import BlockTensor, LinearGroup, Run, Tensor


class GatedMlp:
    """See `bitsmith.models.arch.operations.base.Operation`. A fused matrix is named "ffn_up", as in GGUF."""

    last = "ffn_down"

    def tensors(self, config: ModelConfig, layer: int) -> Iterator[BlockTensor]:
        """The linears."""
        inner, hidden = config.specs[layer].intermediate, config.hidden
        rows = {"ffn_up": 2 * inner} if config.family.fused_gate else {"ffn_gate": inner, "ffn_up": inner}
        for name, size in rows.items():
            yield BlockTensor(name, (size, hidden), "linear", config.has_bias(name, layer))
        yield BlockTensor("ffn_down", (hidden, inner), "linear", config.has_bias("ffn_down", layer))

    def stages(self, config: ModelConfig, layer: int, norm: str) -> tuple[tuple[LinearGroup, ...], ...]:
        """See `Operation`."""
        fused = config.family.fused_gate
        linears = ("ffn_up",) if fused else ("ffn_gate", "ffn_up")
        return (
            (LinearGroup("ffn_in", linears, norm or None),),
            (LinearGroup("down_proj_input", ("ffn_down",), None if fused else "ffn_up"),),
        )

    def forward(self, run: Run, layer: int, block: Any, x: Tensor) -> Tensor:
        """See `Operation`."""
        config = run.config
        if config.family.fused_gate:
            both, inner = block.linears["ffn_up"](x), config.specs[layer].intermediate
            gate, up = both[..., :inner], both[..., inner:]
        else:
            gate, up = block.linears["ffn_gate"](x), block.linears["ffn_up"](x)
        return block.linears["ffn_down"](run.ops.gated(gate, up, config.activation))
