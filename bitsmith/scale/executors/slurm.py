"""Tasks as an array job of Slurm: this process writes the scripts, and the user submits them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from bitsmith.errors import FileError, UsageError
from bitsmith.scale.executors import Site, Submitted
from bitsmith.scale.store import Store
from bitsmith.scale.task import Graph, Task

_SCRIPTS = ("members.sbatch", "join.sbatch", "submit.sh")
_KEPT = ("PYTHONPATH", "BITSMITH_CORE", "BITSMITH_ISA", "HF_HOME")  # of this process's environment


class Slurm:
    """Writes three scripts beside the output: the array job, the job that joins its results, and what submits both."""

    def __init__(self, site: Site) -> None:
        """Raises UsageError if the number of workers is missing."""
        if site.workers is None:
            raise UsageError("--executor=slurm: --workers is missing; give the number of members of the array job.")
        self._site = site

    def run(self, graph: Graph, store: Store) -> Iterator[Task]:
        """Write the scripts. Raises Submitted, unless all is done; FileError if they cannot be written."""
        there = store.present()
        if all(task.key in there for task in graph.tasks):
            yield from graph.tasks
            return
        folder = Path(f"{self._site.beside}.slurm").absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in self._scripts(folder, store).items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise FileError(
                f"{folder}: scripts cannot be written there ({error.strerror or error}); check its permissions."
            ) from error
        raise Submitted(folder / "submit.sh")

    def _scripts(self, folder: Path, store: Store) -> dict[str, str]:
        words: Sequence[str] = self._site.command
        texts = {
            "folder": shlex.quote(str(folder)),
            "cwd": shlex.quote(os.getcwd()),
            "python": shlex.quote(sys.executable),
            "store": shlex.quote(store.url),
            "command": shlex.join(words),
            "shown": shlex.join(words).replace("\n", " "),
            "environment": "".join(
                f"export {name}={shlex.quote(os.environ[name])}\n" for name in _KEPT if os.environ.get(name)
            ),
        }
        workers, threads = self._site.workers or 1, self._site.threads or 1
        templates = files(__package__) / "scripts"
        return {
            name: (templates / name)
            .read_text(encoding="utf-8")
            .format(**texts, workers=workers, threads=threads, last=workers - 1)
            for name in _SCRIPTS
        }
