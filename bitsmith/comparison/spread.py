"""Measures a comparison on several workers: each takes some windows of a text, for the original and all candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from bitsmith.comparison.candidates import Candidate
from bitsmith.comparison.config import CompareConfig
from bitsmith.comparison.scores import TokenScores, joined
from bitsmith.comparison.task_functions import described
from bitsmith.comparison.texts import DomainTokens
from bitsmith.errors import UsageError
from bitsmith.evaluation.measure import batch_of
from bitsmith.models.for_workers import name_for_workers
from bitsmith.scale.executors import Site, executor_of
from bitsmith.scale.results import results
from bitsmith.scale.store import open_store
from bitsmith.scale.task import Given, Graph, Task
from bitsmith.system.folders import cache_folder
from bitsmith.system.progress import Progress, Report
from bitsmith.work.key import program

TASK_WINDOWS = 32  # at least, in one task
Measured = Callable[[Candidate, DomainTokens, TokenScores], None]


def check(config: CompareConfig) -> None:
    """Raise UsageError for an executor that cannot measure."""
    if config.executor == "slurm":
        raise UsageError("--executor=slurm makes files, and measures none; give local or ray.")
    if config.executor is not None:
        executor_of(_site(config))


def _site(config: CompareConfig) -> Site:
    assert config.executor is not None
    return Site(config.executor, config.workers, config.threads)


def measure_spread(
    original: tuple[Candidate, str],
    candidates: Sequence[tuple[Candidate, str]],
    tokens: DomainTokens,
    config: CompareConfig,
    keep: Measured,
    report: Report,
) -> None:
    """Run the original and candidates over a text, on the workers of `config`.

    original, candidates: with the kernel that measures each
    keep: called with what each does on each token
    """
    each = [described(one.checkpoint, name_for_workers(one.checkpoint), kernel) for one, kernel in candidates]
    own = described(original[0].checkpoint, name_for_workers(original[0].checkpoint), original[1])
    given = Given({}, {"tokens": tokens.windows.tokens})
    batch, count = batch_of(tokens.windows.context, original[0].config.vocab), len(tokens.windows)
    step = -(-TASK_WINDOWS // batch) * batch
    tasks = []
    for start in range(0, count, step):
        stop = min(start + step, count)
        said = {"original": own, "candidates": each, "start": start, "stop": stop}
        tasks.append(Task("comparison.windows", f"windows {start} to {stop - 1}", said, (given.key,), stop - start))
    graph = Graph(tasks, [given], program=program())
    key = sha256("".join(graph.by_key).encode()).hexdigest()[:24]
    where = cache_folder() / "compare" / "tasks" if config.work is None else config.work
    store = open_store(where / key if isinstance(where, Path) else f"{where.rstrip('/')}/{key}")
    models = [original[0], *(one for one, _ in candidates)]
    parts: list[list[TokenScores]] = [[] for _ in models]
    done = 0
    for task, state in results(graph, store, executor_of(_site(config))):
        for number, found in enumerate(parts):
            data = state.array("original" if number == 0 else str(number - 1)).tobytes()
            found.append(TokenScores.from_bytes(data, int(state.values["tokens"])))
        done += int(task.cost)
        report(Progress("compare", done, count, "windows", tokens.name))
    for one, found in zip(models, parts, strict=True):
        keep(one, tokens, joined(found))
    store.remove()
