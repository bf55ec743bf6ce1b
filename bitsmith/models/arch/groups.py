"""LinearGroup: linears that share an input, and the tensor that produces it."""

from __future__ import annotations

from dataclasses import dataclass

from bitsmith.models.arch.config import ModelConfig


@dataclass(frozen=True)
class LinearGroup:
    """Linears of a block that read the same input. Names are GGUF's, without "blk.N." and ".weight".

    Shared Hessians, rescaling and fused loading use the groups.
    name: name of the input ("attn_in", "o_proj_input", "ffn_in", "down_proj_input")
    linears: all linears that read the input; they share one Hessian
    producer: the norm or linear whose output rows are this input, so that scales can be folded into it; None if scales
        cannot be folded
    repeats: number of input columns that each row of the producer feeds. With grouped attention, query heads share a
        value head, and folded scales must be equal across these heads
    """

    name: str
    linears: tuple[str, ...]
    producer: str | None
    repeats: int = 1


def linear_groups(config: ModelConfig) -> tuple[LinearGroup, ...]:
    """The groups of each block of a dense decoder, in the order of computation."""
    return (
        LinearGroup("attn_in", ("attn_q", "attn_k", "attn_v"), "attn_norm"),
        LinearGroup("o_proj_input", ("attn_output",), "attn_v", config.heads // config.kv_heads),
        LinearGroup("ffn_in", ("ffn_gate", "ffn_up"), "ffn_norm"),
        LinearGroup("down_proj_input", ("ffn_down",), "ffn_up"),
    )
