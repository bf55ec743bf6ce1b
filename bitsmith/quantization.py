"""`quantize`: from a model's name to a finished file, or to the plan of one."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsmith.calibration.record import CalibrationRecord
from bitsmith.checkpoint import Checkpoint, open_checkpoint
from bitsmith.containers.destination import check_destination
from bitsmith.driver import execute
from bitsmith.errors import UsageError
from bitsmith.estimate import expected_seconds
from bitsmith.manifest import Manifest
from bitsmith.progress import Report, silent
from bitsmith.recipe.gguf import plan_gguf
from bitsmith.recipe.hf_containers import plan_hf
from bitsmith.recipe.native import plan_native
from bitsmith.recipe.plan import Options, Plan, PlannedTensor, Target, parse_size

if TYPE_CHECKING:
    from bitsmith.calibration.run import Prepared

METHODS = ("nearest", "gptq")
_PLANNERS: dict[str, Callable[[Checkpoint, Target, Options], Plan]] = {
    "gguf": plan_gguf,
    "native": plan_native,
    "gptq": plan_hf,
    "awq": plan_hf,
    "compressed": plan_hf,
}


@dataclass(frozen=True)
class Quantized:
    """What was made, or with `manifest` None what would be made.

    out: the file, or the folder; of a split file its first part
    paths: every file
    size: bytes of all files, exact before and after
    calibration: what it was calibrated on; None without
    expected_seconds, seconds: from a short measurement; real, 0.0 for a plan
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
    peak_memory: int = 0
    calibration: CalibrationRecord | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data a weight."""
        return self.plan.bits_per_weight

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know."""
        return self.plan.warnings

    def worst(self, count: int = 3) -> list[tuple[str, float]]:
        """The tensors of largest relative squared error."""
        if self.manifest is None:
            return []
        lossy = [(t.name, t.error) for t in self.manifest.tensors if t.error > 0]
        return sorted(lossy, key=lambda pair: -pair[1])[:count]

    def tensor_rows(self) -> list[tuple[str, ...]]:
        """One row a tensor: name, shape, from, to, bytes, why."""
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
        """One row for all tensors of the same kind in different blocks, layouts and reasons being equal."""
        groups: dict[tuple[str, ...], list[PlannedTensor]] = {}
        order: dict[str, int] = {}  # a kind's rows stay together, where it is first met
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
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
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


def quantize(
    model: str | Path,
    *,
    to: str,
    out: str | Path | None = None,
    method: str = "nearest",
    calibration: str | None = None,
    calibration_tokens: int | None = None,
    calibration_context: int | None = None,
    seed: int = 0,
    memory: str | None = None,
    pure: bool = False,
    rules: Sequence[str] = (),
    keep: Sequence[str] = (),
    group_size: int | None = None,
    symmetric: bool | None = None,
    threads: int | None = None,
    max_shard_size: str | None = None,
    pre: str | None = None,
    revision: str | None = None,
    requantize: bool = False,
    dry_run: bool = False,
    force: bool = False,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
) -> Quantized:
    """Quantize `model` to `to`; the words are the command line's, see `bitsmith quantize --help`.

    model: a folder, a file, a hub id or "reference"; to: "CONTAINER/FORMAT", a bare name means gguf/NAME
    out: the file or folder; None names it in the current folder. rules: "REGEX=TYPE", the first match wins
    calibration: "default" (the built-in text), a text or .jsonl file, a data set of the hub, "self" (the model's own
        text), or an importance file of llama.cpp's (.gguf, .dat); None rounds without importance. The next three say
        how many tokens, in windows of how many, and which. memory: "4GB", what its hidden states may take
    keep: regular expressions of tensors that stay in 16 bits; group_size: weights that share a scale, -1 for a whole
        row; symmetric: without zero points; None takes the container's usual. For gptq, awq and compressed
    threads: None takes the machine's cores. max_shard_size: "2GB", "512MiB"
    dry_run: only the plan, exact in size
    on_plan: called with the plan before any weight is read
    Everything that cannot work fails before that call. Raises UsageError for a wrong call, other BitsmithErrors
    for bad data; nothing is then left under the output's name.
    """
    target = Target.parse(to)
    if method not in METHODS:
        raise UsageError(f"--method {method}: unknown; known: {', '.join(METHODS)}.")
    workers = _thread_count(threads)
    room = None if memory is None else parse_size(memory)
    checkpoint = open_checkpoint(model, revision=revision)
    path = _output_path(checkpoint, target, out)
    prepared = _prepared(checkpoint, calibration, calibration_tokens, calibration_context, seed)
    if method != "nearest":
        from bitsmith.calibration.decide import check_method

        check_method(prepared, method)
    options = Options(
        pure=pure,
        rules=tuple(rules),
        keep=tuple(keep),
        group_size=group_size,
        symmetric=symmetric,
        pre=pre,
        max_shard_bytes=None if max_shard_size is None else parse_size(max_shard_size),
        requantize=requantize,
        method=method,
        filename=path.name,
        calibration=None if prepared is None else prepared.record,
    )
    _check_grouping(target, options)
    planned = _planned(_PLANNERS[target.container](checkpoint, target, options), target, path, workers, prepared)
    if not dry_run:
        plan = planned.plan
        layouts = plan.layouts(plan.manifest())
        check_destination(path, layouts, extras=plan.extras, as_folder=target.is_folder, force=force)
    if on_plan is not None:
        on_plan(planned)
    if dry_run:
        return planned
    started = time.monotonic()
    plan, calibrated = planned.plan, None
    if prepared is not None:
        from bitsmith.calibration.decide import decide

        prepared = prepared.read(threads=workers, report=report)
        importance = prepared.importance(memory=room, threads=workers, report=report)
        plan = replace(plan, recipe=replace(options, calibration=importance.record).recipe(plan.target))
        calibrated = decide(plan, prepared, importance, method, memory=room, report=report)
        planned = replace(planned, plan=plan, calibration=importance.record)
    manifest = execute(plan, path, threads=workers, calibrated=calibrated, force=force, report=report)
    return replace(planned, manifest=manifest, seconds=time.monotonic() - started, peak_memory=_peak_memory())


def _check_grouping(target: Target, options: Options) -> None:
    """Raise UsageError for words that only other containers know."""
    words = {"--keep": options.keep, "--group-size": options.group_size, "--sym and --asym": options.symmetric}
    given = [word for word, value in words.items() if value not in ((), None)]
    if given and target.container in ("gguf", "native"):
        raise UsageError(
            f"{given[0]} is for gptq, awq and compressed; {target.container} names formats (int4-g64-asym) and has "
            "--rule 'REGEX=f16'."
        )


def _planned(plan: Plan, target: Target, path: Path, threads: int, prepared: Prepared | None) -> Quantized:
    """What would be made at `path`."""
    if prepared is not None:
        plan = replace(plan, warnings=(*plan.warnings, *prepared.warnings))
    files = [layout.filename for layout in plan.layouts(plan.manifest())]
    folder = path if target.is_folder else path.parent
    return Quantized(
        target=target,
        out=path if target.is_folder else folder / files[0],
        paths=tuple(folder / name for name in [*files, *plan.extras]),
        plan=plan,
        size=plan.size,
        threads=threads,
        expected_seconds=expected_seconds(plan, threads, importance=prepared is not None),
        calibration=None if prepared is None else prepared.record,
    )


def _prepared(
    checkpoint: Checkpoint, source: str | None, tokens: int | None, context: int | None, seed: int
) -> Prepared | None:
    """The calibration, its input read and checked; None where none was asked for."""
    if source is None:
        if tokens is not None or context is not None:
            raise UsageError(
                "--calibration-tokens and --calibration-context say how to calibrate, but there is no --calibration; "
                "give --calibration default, or a text."
            )
        return None
    from bitsmith.calibration.run import prepare

    return prepare(checkpoint, source, tokens=tokens, context=context, seed=seed)


def _thread_count(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= threads <= 1024:
        raise UsageError(f"--threads {threads}: expected a number from 1 to 1024.")
    return threads


def _output_path(checkpoint: Checkpoint, target: Target, out: str | Path | None) -> Path:
    if target.is_folder:
        return Path(out) if out else Path(f"{checkpoint.name}-{target.container}-{target.name}")
    if out is None:
        return Path(f"{checkpoint.name}-{target.name.upper()}.gguf")
    path = Path(out)
    if path.is_dir():
        return path / f"{checkpoint.name}-{target.name.upper()}.gguf"
    return path


def _peak_memory() -> int:
    """Bytes; the kernel reports kilobytes, except on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
