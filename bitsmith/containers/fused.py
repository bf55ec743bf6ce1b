"""Modules that vLLM loads as one matrix. They must have the same scheme."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bitsmith.containers.container import Scheme

FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("in_proj_qkv", "in_proj_z"),  # of gated delta nets
    ("in_proj_b", "in_proj_a"),
)
_EXPERT = re.compile(r"(.+\.experts)\.\d+\.")  # vLLM loads all matrices of all experts of a layer together
_FUSED_NAMES = ("qkv_proj", "gate_up_proj", "in_proj_qkvz", "in_proj_ba")


def fused_with(module: str) -> tuple[str, ...]:
    """The modules that runtimes load with this one as one matrix, itself included."""
    stem, _, last = module.rpartition(".")
    return next((tuple(f"{stem}.{name}" for name in members) for members in FUSED if last in members), (module,))


def uneven(schemes: Mapping[str, Scheme | None]) -> list[str]:
    """Groups of modules that vLLM loads as one matrix although their schemes differ. Each names its modules."""
    found = []
    for members in FUSED:
        for module in schemes:
            stem, _, last = module.rpartition(".")
            together = [f"{stem}.{name}" for name in members if f"{stem}.{name}" in schemes]
            if last == members[0] and len({schemes[name] for name in together}) > 1:
                found.append(", ".join(together))
    experts: dict[str, set[Scheme | None]] = {}
    for module, scheme in schemes.items():
        layer = _EXPERT.match(module)
        if layer is not None:
            experts.setdefault(layer[1], set()).add(scheme)
    return found + [f"all experts of {layer}" for layer, kinds in experts.items() if len(kinds) > 1]


def fused_schemes(others: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """Schemes of fused matrices by vLLM's names, if all their members have the same scheme."""
    found = {}
    for members, fused in zip(FUSED, _FUSED_NAMES, strict=True):
        for module, scheme in others.items():
            stem, _, last = module.rpartition(".")
            if last == members[0] and all(others.get(f"{stem}.{name}") == scheme for name in members):
                found[f"{stem}.{fused}"] = scheme
    return found
