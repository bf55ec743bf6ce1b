"""Memory that a training will take, before it starts: what `bitsmith plan --training` says, against what is free."""

from __future__ import annotations

from bitsmith.errors import BitsmithError, UsageError
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.planner.model_spec import from_checkpoint
from bitsmith.planner.training import Training, training_memory
from bitsmith.system.memory import available_memory
from bitsmith.system.sizes import human_bytes
from bitsmith.tune.config import QloraConfig


def planned_memory(
    checkpoint: Checkpoint, config: QloraConfig, context: int, *, method: str, dtype: str
) -> Training | None:
    """What the plan says of a training; None for a model whose shape it does not know.

    method: "lora" or "qlora"
    dtype: of what is not quantized: "float32", "bfloat16", "float16"
    """
    try:
        network = from_checkpoint(checkpoint, "").network
        return training_memory(
            network,
            method,
            context=context,
            batch=config.batch,
            rank=config.rank,
            checkpointing=config.checkpointing,
            optimizer="adamw" if config.optimizer == "adamw" else "adamw-8bit",
            number=4 if dtype == "float32" else 2,
        )
    except BitsmithError:  # a family that only transformers knows
        return None


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device; None if it does not tell."""
    if device == "cpu":
        return available_memory()
    import torch

    return torch.cuda.mem_get_info(device)[0]


def check_memory(planned: Training | None, device: str, *, force: bool) -> None:
    """Raise UsageError where a training takes more memory than is free, unless `force` is given."""
    free = free_memory(device)
    if planned is None or free is None or force or planned.total <= free:
        return
    raise UsageError(
        f"training takes about {human_bytes(planned.total)}, of which activations are "
        f"{human_bytes(planned.activations)}, and {human_bytes(free)} are free on {device}; give a smaller --batch or "
        "--context, or --force to try."
    )
