"""LinearGroup: linears that share an input, and what produces it; for shared Hessians, rescaling and fusion."""

from __future__ import annotations

from dataclasses import dataclass

from bitsmith.models.arch.config import ModelConfig


@dataclass(frozen=True)
class LinearGroup:
    """Linears of a block that read the same input. Names are GGUF's, without "blk.N." and ".weight".

    name: of the input ("attn_in", "o_proj_input", "ffn_in", "down_proj_input")
    linears: ALL consumers of the input; they share one Hessian
    producer: the norm or linear whose output (rows) is this input, so that a scale of the input folds into it; None
        where nothing can take it
    repeats: consumer columns fed by each producer row (grouped attention: query heads that share a value head); scales
        of a fold must then be tied across the repeated heads
    """

    name: str
    linears: tuple[str, ...]
    producer: str | None
    repeats: int = 1


def linear_groups(config: ModelConfig) -> tuple[LinearGroup, ...]:
    """The groups of every block of a dense decoder, in the order they are computed."""
    return (
        LinearGroup("attn_in", ("attn_q", "attn_k", "attn_v"), "attn_norm"),
        LinearGroup("o_proj_input", ("attn_output",), "attn_v", config.heads // config.kv_heads),
        LinearGroup("ffn_in", ("ffn_gate", "ffn_up"), "ffn_norm"),
        LinearGroup("down_proj_input", ("ffn_down",), "ffn_up"),
    )
