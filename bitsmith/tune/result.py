"""What a training made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsmith.system.sizes import counted, human_bytes, human_seconds


@dataclass(frozen=True)
class TunePlan:
    """What a training will do, before it starts.

    rows: of a batch, examples or packed ones
    memory: bytes, as `bitsmith plan --training` counts them; None for a model that it does not know
    """

    base: str
    format: str
    records: int
    examples: int
    rows: int
    tokens: int
    learned: int
    context: int
    steps: int
    memory: int | None
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For a reader."""
        memory = "" if self.memory is None else f", about {human_bytes(self.memory)} of memory"
        base = f"{self.base} in {self.format}" if self.format else self.base
        return [
            f"{base}: {counted(self.records, 'record')}, {counted(self.examples, 'example')}, {self.tokens:,} tokens "
            f"of which {self.learned:,} are learned",
            f"{counted(self.steps, 'step')}, {counted(self.rows, 'row')} of at most {self.context:,} tokens{memory}",
        ]


@dataclass(frozen=True, repr=False)
class TunedAdapter:
    """A finished adapter.

    out: its folder, in PEFT's layout
    trained: number of parameters
    loss_before, loss_after: on the data to measure on, nats a token; None without such data
    history: dictionaries with "step" and "loss" or "eval_loss"
    memory: bytes that the training took: on a CPU the process's peak above what it held before, else the device's peak
    files: further files: the loss plot, the GGUF adapter
    """

    plan: TunePlan
    out: Path
    modules: tuple[str, ...]
    trained: int
    loss_before: float | None
    loss_after: float | None
    seconds: float
    memory: int
    history: Sequence[Mapping[str, Any]]
    files: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        after = "" if self.loss_after is None else f", loss {self.loss_before:.4f} -> {self.loss_after:.4f}"
        return f"<TunedAdapter {str(self.out)!r}: {self.trained:,} parameters, {self.plan.steps} steps{after}>"

    def lines(self) -> list[str]:
        """For a reader."""
        said = [
            f"wrote {self.out}: an adapter of {counted(len(self.modules), 'layer')}, {self.trained:,} parameters, "
            f"after {counted(self.plan.steps, 'step')} in {human_seconds(self.seconds)}"
        ]
        if self.loss_after is not None and self.loss_before is not None:
            said.append(f"loss on data not trained on: {self.loss_before:.4f} before, {self.loss_after:.4f} now")
        planned = "" if self.plan.memory is None else f"; the plan said {human_bytes(self.plan.memory)}"
        said.append(f"memory: {human_bytes(self.memory)}{planned}")
        return [*said, *(f"wrote {path}" for path in self.files)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plan = self.plan
        return {
            "base": plan.base,
            "format": plan.format,
            "out": str(self.out),
            "files": [str(path) for path in self.files],
            "records": plan.records,
            "examples": plan.examples,
            "rows": plan.rows,
            "tokens": plan.tokens,
            "learned_tokens": plan.learned,
            "context": plan.context,
            "steps": plan.steps,
            "modules": list(self.modules),
            "trained_parameters": self.trained,
            "loss_before": self.loss_before,
            "loss_after": self.loss_after,
            "seconds": self.seconds,
            "memory_bytes": self.memory,
            "planned_memory_bytes": plan.memory,
            "history": [dict(line) for line in self.history],
            "notes": list(plan.notes),
        }
