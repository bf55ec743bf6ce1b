"""Bytes of whole files, exact, by the very plans that `quantize` carries out."""

from __future__ import annotations

from collections.abc import Sequence

from bitsmith.errors import BitsmithError
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.recipe.gguf import gguf_keys, gguf_tensors, plan_mix
from bitsmith.recipe.hf_containers import plan_hf
from bitsmith.recipe.native import plan_native
from bitsmith.recipe.plan import PlanOptions, Target


def file_bytes(checkpoint: Checkpoint, targets: Sequence[Target]) -> dict[Target, int | str]:
    """What `quantize --dry-run` says of each target; why not, where it cannot be made.

    Tokenizer files are read once for all.
    """
    found: dict[Target, int | str] = {}
    mixes = [target for target in targets if target.container == "gguf"]
    try:
        if mixes:
            wanted, shape = gguf_tensors(checkpoint)
            keys = gguf_keys(checkpoint, None)
            for mix in mixes:
                found[mix] = plan_mix(checkpoint, mix, PlanOptions(filename="plan.gguf"), wanted, shape, keys).size
    except BitsmithError as error:
        found |= dict.fromkeys(mixes, str(error))
    for target in targets:
        if target.container == "gguf":
            continue
        planner = plan_native if target.container == "native" else plan_hf
        try:
            found[target] = planner(checkpoint, target, PlanOptions()).size
        except BitsmithError as error:
            found[target] = str(error)
    return found
