"""Memory that a training will take, before it starts: what `bitsmith plan --training` says, against what is free."""

from __future__ import annotations

from dataclasses import dataclass

from bitsmith.errors import BitsmithError, UsageError
from bitsmith.planner.model_spec import from_checkpoint
from bitsmith.planner.training import Training, training_memory
from bitsmith.system.memory import available_memory
from bitsmith.system.sizes import human_bytes
from bitsmith.tune.base import FLOATS, Base
from bitsmith.tune.config import QloraConfig

_BUFFERS = 48_000_000  # bytes on a CPU: compiled kernels, their buffers, what the C library holds for later


def returned_blocks(dtype: str) -> int:
    """Bytes from which freed blocks go back to the system in a training on a CPU.

    Keeping those of one activation is faster, but tears holes into the C library's heap: in float32 these were larger
    than everything else.
    """
    return 1 << 20 if dtype == "float32" else 1 << 21


@dataclass(frozen=True)
class PlannedMemory:
    """Bytes that a training will take at its peak.

    training: weights, gradients, optimizer and activations
    buffers: what the process takes beside these, on a CPU
    """

    training: Training
    buffers: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.training.total + self.buffers


def planned_memory(base: Base, config: QloraConfig, longest: int, *, dtype: str, device: str) -> PlannedMemory | None:
    """What the plan says of a training; None for a model whose shape it does not know.

    longest: tokens of the longest row
    dtype: of what is not quantized: "float32", "bfloat16", "float16"
    """
    try:
        network = from_checkpoint(base.checkpoint, "").network
        found = training_memory(
            network,
            "lora" if base.format in FLOATS else "qlora",
            context=longest,
            batch=config.batch,
            rank=config.rank,
            checkpointing=config.checkpointing,
            optimizer="adamw" if config.optimizer == "adamw" else "adamw-8bit",
            number=4 if dtype == "float32" else 2,
        )
    except BitsmithError:  # a family that only transformers knows
        return None
    return PlannedMemory(found, _BUFFERS if device == "cpu" else 0)


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device; None if it does not tell."""
    if device == "cpu":
        return available_memory()
    import torch

    return torch.cuda.mem_get_info(device)[0]


def check_memory(planned: PlannedMemory | None, device: str, *, force: bool) -> None:
    """Raise UsageError where a training takes more memory than is free, unless `force` is given."""
    free = free_memory(device)
    if planned is None or free is None or force or planned.total <= free:
        return
    raise UsageError(
        f"training takes about {human_bytes(planned.total)}, of which activations are "
        f"{human_bytes(planned.training.activations)}, and {human_bytes(free)} are free on {device}; give a smaller "
        "--batch or --context, or --force to try."
    )
