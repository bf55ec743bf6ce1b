"""Matrices that vLLM loads as one must be stored alike."""

from __future__ import annotations

from bitsmith.containers.container import Scheme
from bitsmith.containers.fused import uneven
from bitsmith.containers.schemes import parse


def test_experts_of_a_layer_are_stored_alike() -> None:
    four, eight = parse("gptq", "int4"), parse("gptq", "int8")
    names = [f"model.layers.0.mlp.experts.{e}.{part}_proj" for e in range(3) for part in ("gate", "up", "down")]
    schemes: dict[str, Scheme | None] = dict.fromkeys(names, four)
    assert uneven(schemes) == []
    schemes |= {name: eight for name in names if ".experts.1." in name}
    assert uneven(schemes) == ["all experts of model.layers.0.mlp.experts"]
    schemes[names[0]] = None
    assert uneven(schemes)[0] == f"{names[0]}, {names[1]}"
