"""Exact sizes of whole files, from the same plans that `quantize` uses."""

from __future__ import annotations

from collections.abc import Sequence

from bitsmith.errors import BitsmithError
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.recipe.gguf import assign_mix, gguf_keys, gguf_tensors
from bitsmith.recipe.plan import Plan
from bitsmith.recipe.planners import assign
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.target import Target


def file_bytes(checkpoint: Checkpoint, targets: Sequence[Target]) -> dict[Target, int | str]:
    """Size of the file for each target, in bytes, as `quantize --dry-run` gives it. A message if it cannot be made.

    Tokenizer files are read only once.
    """
    found: dict[Target, int | str] = {}
    mixes = [target for target in targets if target.container == "gguf"]
    try:
        if mixes:
            wanted, shape = gguf_tensors(checkpoint)
            keys = gguf_keys(checkpoint, None)
            for mix in mixes:
                made = assign_mix(checkpoint, mix, PlanOptions(filename="plan.gguf"), wanted, shape, keys)
                found[mix] = Plan.of(made).size
    except BitsmithError as error:
        found |= dict.fromkeys(mixes, error.message)
    for target in targets:
        if target.container == "gguf":
            continue
        try:
            found[target] = Plan.of(assign(checkpoint, target, PlanOptions())).size
        except BitsmithError as error:
            found[target] = error.message
    return found
