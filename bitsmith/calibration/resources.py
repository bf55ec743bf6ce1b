"""Resources: what calibrated work may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Limits of this machine.

    memory: bytes for all hidden states together, more goes to disk; None: half of what is available
    threads: torch.set_num_threads for the whole process; None leaves it alone
    device: "cpu", "cuda" or "cuda:N"
    """

    memory: int | None = None
    threads: int | None = None
    device: str = "cpu"
