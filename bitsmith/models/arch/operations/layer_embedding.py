"""An embedding of each layer, added behind the MLP: proj(act(gate(x)) * embedding) (Gemma 3n and 4).

The embedding of a token and a layer joins a row of a table with a projection of the token's first hidden state; see
`bitsmith.runtime.layer_inputs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.operations.base import BlockTensor, LinearGroup, Run, Tensor


class LayerEmbedding:
    """See `bitsmith.models.arch.operations.base.Operation`."""

    last = "proj"

    def tensors(self, config: ModelConfig, layer: int) -> Iterator[BlockTensor]:
        """The norm behind it, and two linears."""
        yield BlockTensor("post_norm", (config.hidden,), "vector")
        yield BlockTensor("inp_gate", (config.layer_width, config.hidden), "linear")
        yield BlockTensor("proj", (config.hidden, config.layer_width), "linear")

    def stages(self, config: ModelConfig, layer: int, norm: str) -> tuple[tuple[LinearGroup, ...], ...]:
        """Neither input can take a scale: one is the residual stream, the other has the activation before it."""
        return (LinearGroup("layer_in", ("inp_gate",), None),), (LinearGroup("layer_proj_input", ("proj",), None),)

    def forward(self, run: Run, layer: int, block: Any, x: Tensor) -> Tensor:
        """See `Operation`."""
        gate = block.linears["inp_gate"](x)
        return block.linears["proj"](run.ops.gated(gate, run.layer_input(layer), run.config.activation))
