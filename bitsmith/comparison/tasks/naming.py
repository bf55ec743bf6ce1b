"""What the names in --tasks mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bitsmith.comparison.tasks.files import read_task
from bitsmith.comparison.tasks.items import Task
from bitsmith.comparison.tasks.made import made_task
from bitsmith.comparison.texts import Domain
from bitsmith.errors import UsageError, quoted

MADE = "made"  # questions made from the texts of the comparison
_FILES = (".csv", ".jsonl", ".ndjson", ".json")


def open_tasks(names: Sequence[str], domains: Sequence[Domain], *, shots: int = 0) -> tuple[list[Task], list[str]]:
    """The tasks of files and those that are made, and the names that are left for lm-eval.

    shots: number of examples before each question of a file
    Raises UsageError for two tasks of one name, FileError for a broken file.
    """
    found: list[Task] = []
    others: list[str] = []
    for each in names:
        name, _, file = each.rpartition("=")
        if each == MADE:
            found += [_of_text(domain, len(domains) > 1) for domain in domains]
        elif Path(file).suffix.lower() in _FILES or _is_folder(each):
            found.append(read_task(Path(file).expanduser(), name or None, shots=shots))
        elif "/" in each or "=" in each:
            raise UsageError(
                f"--tasks={quoted(each)}: expected {MADE}, a .csv or .jsonl file, a folder of MMLU's, or a task of "
                "lm-eval; there is no such folder."
            )
        else:
            others.append(each)
    twice = next((task.name for task in found if [each.name for each in found].count(task.name) > 1), None)
    if twice is not None:
        raise UsageError(f"--tasks: there are two tasks called {twice}; give NAME=FILE.")
    return found, others


def _is_folder(name: str) -> bool:
    """A folder, and no task of lm-eval: its name has a slash, or a name before it."""
    return ("/" in name or "=" in name) and Path(name.rpartition("=")[2]).expanduser().is_dir()


def _of_text(domain: Domain, several: bool) -> Task:
    return made_task(domain, name=f"continuation {domain.name}" if several else "continuation")
