"""Makes the assignment of a target with the module for its kind of container."""

from __future__ import annotations

from bitsmith.containers import find_container
from bitsmith.containers.container import ModuleContainer
from bitsmith.models.checkpoint import Checkpoint, require_weights
from bitsmith.recipe.plan import Assignment
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.target import Target


def assign(checkpoint: Checkpoint, target: Target, options: PlanOptions) -> Assignment:
    """The assignment of all tensors of `checkpoint` for `target`.

    Raises UsageError for a wrong name or option, UnsupportedError and FileError for a model that the container cannot
    hold.
    """
    require_weights(checkpoint)
    if target.is_mmproj:
        from bitsmith.recipe.mmproj import assign_mmproj

        return assign_mmproj(checkpoint, target, options)
    checkpoint = checkpoint.laid_out("gguf" if target.container == "gguf" else "hf")
    if isinstance(find_container(target.container), ModuleContainer):
        from bitsmith.recipe.hf_containers import assign_hf

        return assign_hf(checkpoint, target, options)
    if target.container == "gguf":
        from bitsmith.recipe.gguf import assign_gguf

        return assign_gguf(checkpoint, target, options)
    from bitsmith.recipe.native import assign_native

    return assign_native(checkpoint, target, options)
