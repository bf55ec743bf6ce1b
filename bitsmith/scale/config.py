"""ScaleConfig: the options that say where the tasks of a run are done."""

from __future__ import annotations

from dataclasses import dataclass

from bitsmith.errors import UsageError
from bitsmith.system.options import option

_GROUP = "Machine"


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Where the tasks of a run are done; none of it changes a byte of the output."""

    executor: str | None = option(
        None,
        group=_GROUP,
        metavar="NAME",
        help="Where the tasks of the run are done: local (worker processes here), ray or ray://HOST:PORT (a cluster), "
        "slurm (writes an array job); default: all in this process.",
    )
    workers: int | None = option(
        None, group=_GROUP, help="With --executor: number of workers; default: 1 for local, all of a Ray cluster."
    )
    work: str | None = option(
        None,
        group=_GROUP,
        metavar="WHERE",
        help="With --executor: where workers leave their results: a folder that all of them see, or s3://... and other "
        "storage of fsspec; default: beside the output.",
    )

    def check_executor(self) -> None:
        """Raise UsageError for values that are never valid."""
        if self.executor is None:
            for flag, value in (("--workers", self.workers), ("--work", self.work)):
                if value is not None:
                    raise UsageError(f"{flag}={value} is for several workers, but there is no --executor.")
            return
        from bitsmith.scale.executors import check_executor

        check_executor(self.executor)
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers={self.workers}: expected 1 or more.")
        alone = self.executor == "local" and self.workers in (None, 1)
        if (self.work or "").startswith("memory://") and not alone:
            raise UsageError("--work=memory:// is seen by one process only; give storage that all workers see.")
