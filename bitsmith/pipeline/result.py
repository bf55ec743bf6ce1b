"""Quantized: the result of `quantize`, or its plan with --dry-run; as values, rows of a table, and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitsmith.containers.manifest import Manifest
from bitsmith.pipeline.losses import loss_warnings
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.recipe.coverage import Coverage
from bitsmith.recipe.plan import Plan, PlannedTensor
from bitsmith.recipe.target import Target
from bitsmith.system.sizes import human_bytes, human_seconds
from bitsmith.system.tables import html_table


@dataclass(frozen=True, repr=False)
class Quantized:
    """One finished output, or a planned output if `manifest` is None.

    out: the file or the folder; for a split file its first part
    paths: every file
    size: bytes of all files, exact also for a plan
    calibration: the record of the calibration; None without one
    calibration_memory: bytes that calibration needs in addition: hidden states, a block twice, its largest Hessian,
        the rows being rounded
    calibration_disk: bytes of hidden states in a temporary file, if they are more than `memory` allows
    kept_disk: about how many bytes of state are kept beside the output, so that a run that was stopped is continued
    calibration_products: multiplications, each with an addition, that the calibration takes
    products_per_second: that this machine takes, by a short measurement; 0.0 without a calibration on text
    method: how codes are chosen
    notes: notes for the user about the run
    told: what a budget chose, and what it is expected to lose
    expected_kld: mean KLD from the original that types chosen for a budget are expected to have, nats a token; None
        without a budget, and where it has room for the largest types, so that nothing was measured
    coverage: tokens of the calibration text that each expert saw; None for a plan, and without experts or text
    recovered: names of the quantized tensors that lay on their format's grid already, and are kept exactly
    submitted: the script that goes on with the run, if its work was handed over (`--executor slurm`); else None
    expected_seconds: from a short measurement
    expected_memory: bytes that the whole process takes at most, with all outputs of the run; 0 if it is not known
    corrected_seconds: of each stage that goes block by block, as its first block says; empty for a plan
    fast_seconds: the same with effort="fast"; None if it is not less
    seconds: real time; 0.0 for a plan
    verify_seconds, verify_cpu_seconds: the part of `seconds` for flushing to disk, reading back and comparing, as
        wall-clock time and as processor time
    peak_memory: bytes, of the whole process so far
    """

    target: Target
    out: Path
    paths: tuple[Path, ...]
    plan: Plan
    size: int
    threads: int
    expected_seconds: float
    manifest: Manifest | None = None
    seconds: float = 0.0
    verify_seconds: float = 0.0
    verify_cpu_seconds: float = 0.0
    peak_memory: int = 0
    calibration: CalibrationRecord | None = None
    calibration_memory: int = 0
    calibration_disk: int = 0
    kept_disk: int = 0
    calibration_products: float = 0.0
    products_per_second: float = 0.0
    fast_seconds: float | None = None
    expected_memory: int = 0
    corrected_seconds: Mapping[str, float] = field(default_factory=dict)
    method: str = "nearest"
    notes: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    expected_kld: float | None = None
    coverage: Coverage | None = None
    recovered: tuple[str, ...] = ()
    submitted: Path | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight."""
        return self.plan.bits_per_weight

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user: those of the plan, and of a finished output those of `losses`."""
        return (*self.plan.warnings, *self.losses)

    @property
    def losses(self) -> tuple[str, ...]:
        """Warnings about tensors that lost far more than their type usually does; empty for a plan."""
        return () if self.manifest is None else loss_warnings(self.plan, self.manifest.tensors)

    def __repr__(self) -> str:
        """One line."""
        state = f"in {human_seconds(self.seconds)}" if self.manifest is not None else "planned"
        size = f"{human_bytes(self.size)}, {self.bits_per_weight:.2f} bits per weight"
        return f"<Quantized {self.target}: {str(self.out)!r}, {size}, {self.method}, {state}>"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [("file", self.out), ("size", human_bytes(self.size))]
        rows += [("bits per weight", f"{self.bits_per_weight:.3f}"), ("method", self.method)]
        rows += [] if self.calibration is None else [("calibrated on", self.calibration.source)]
        rows += [("expected", human_seconds(self.expected_seconds))]
        rows += [("took", human_seconds(self.seconds))] if self.manifest is not None else []
        rows += [("warning", warning) for warning in self.warnings]
        return html_table(str(self.target), rows)

    def worst(self, count: int = 3) -> list[tuple[str, float]]:
        """The tensors with the largest relative squared error."""
        if self.manifest is None:
            return []
        lossy = [(t.name, t.error) for t in self.manifest.tensors if t.error > 0]
        return sorted(lossy, key=lambda pair: -pair[1])[:count]

    def tensor_rows(self) -> list[tuple[str, ...]]:
        """One row per tensor: name, shape, from, to, bytes, why."""
        return [
            (
                t.info.name,
                "x".join(map(str, t.info.shape)),
                t.source_layout,
                t.info.layout,
                f"{t.info.nbytes:,}",
                t.reason,
            )
            for t in self.plan.tensors
        ]

    def grouped_rows(self) -> list[tuple[str, ...]]:
        """One row for all tensors of the same kind in different blocks with the same layouts and reasons."""
        groups: dict[tuple[str, ...], list[PlannedTensor]] = {}
        order: dict[str, int] = {}  # rows of one kind stay together, in the place of the first
        for t in self.plan.tensors:
            kind = ".".join("*" if part.isdigit() else part for part in t.info.name.split("."))
            shape = "x".join(map(str, t.info.shape))
            order.setdefault(kind, len(order))
            groups.setdefault((kind, shape, t.source_layout, t.info.layout, t.reason), []).append(t)
        return [
            (
                kind if len(members) == 1 else f"{kind} ({len(members)})",
                shape,
                before,
                after,
                f"{sum(m.info.nbytes for m in members):,}",
                why,
            )
            for (kind, shape, before, after, why), members in sorted(groups.items(), key=lambda g: order[g[0][0]])
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        errors = {t.name: t for t in self.manifest.tensors} if self.manifest else {}
        return {
            "model": str(self.plan.checkpoint.source.path),
            "to": str(self.target),
            "out": str(self.out),
            "files": [str(path) for path in self.paths],
            "written": self.manifest is not None,
            "bytes": self.size,
            "parameters": self.plan.parameters,
            "bits_per_weight": self.bits_per_weight,
            "threads": self.threads,
            "expected_seconds": self.expected_seconds,
            "expected_kld": self.expected_kld,
            "expected_memory_bytes": self.expected_memory,
            "expected_disk_bytes": self.size + self.calibration_disk,
            "corrected_seconds": dict(self.corrected_seconds),
            "seconds": self.seconds,
            "verify_seconds": self.verify_seconds,
            "verify_cpu_seconds": self.verify_cpu_seconds,
            "peak_memory_bytes": self.peak_memory,
            "method": self.method,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "calibration_memory_bytes": self.calibration_memory,
            "calibration_disk_bytes": self.calibration_disk,
            "kept_disk_bytes": self.kept_disk,
            "calibration_products": self.calibration_products,
            "products_per_second": self.products_per_second,
            "experts": None if self.coverage is None else self.coverage.to_dict(),
            "recovered_tensors": list(self.recovered),
            "notes": [*self.told, *self.notes],
            "warnings": list(self.warnings),
            "tensors": [
                {
                    "name": t.info.name,
                    "shape": list(t.info.shape),
                    "from": t.source_layout,
                    "to": t.info.layout,
                    "bytes": t.info.nbytes,
                    "why": t.reason,
                    **(
                        {"sha256": errors[t.info.name].sha256, "relative_squared_error": errors[t.info.name].error}
                        if errors
                        else {}
                    ),
                }
                for t in self.plan.tensors
            ],
        }
