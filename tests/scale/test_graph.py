"""Tasks, stores and workers: results are found by their keys, and what is lost or damaged is made again."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsmith.errors import FileError, ResourceError, TensorError, UsageError
from bitsmith.scale import task_functions, worker
from bitsmith.scale.executors import Site, executor_of, local
from bitsmith.scale.executors.local import Local
from bitsmith.scale.results import GRAPH, deliver, results
from bitsmith.scale.store import FolderStore, LostError, RemoteStore, Store, open_store
from bitsmith.scale.task import Given, Graph, Place, Result, Task, graph_of
from bitsmith.scale.worker import Worker, read_graph, work
from bitsmith.scale.working import raise_errors
from bitsmith.work.key import program
from bitsmith.work.state import State

GIVEN = Given({"base": 7}, {"x": np.arange(4, dtype=np.float32)})


def add(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
    """The sum of a number and of what it reads."""
    if arguments["number"] < 0:
        raise TensorError("the number is negative", tensor="blk.0")
    found = arguments["number"] + sum(int(each.values.get("sum", each.values.get("base", 0))) for each in inputs)
    return {"sum": found}, {"row": np.full(3, found, np.int32)}


@pytest.fixture(autouse=True)
def _function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(task_functions.TASKS, "add", add)


def graph(*numbers: int) -> Graph:
    """A task for each number, which reads what is given, and one behind them that reads them all."""
    first = [Task("scale.add", f"number {number}", {"number": number}, (GIVEN.key,)) for number in numbers]
    last = Task("scale.add", "sum", {"number": 0}, tuple(task.key for task in first))
    return Graph([*first, last], [GIVEN], program=program())


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    found = open_store(tmp_path / "tasks" if request.param == "folder" else f"memory://{tmp_path.name}")
    assert isinstance(found, FolderStore if request.param == "folder" else RemoteStore)
    yield found
    found.remove()
    assert found.present() == set()


def sums(made: Graph, store: Store, told: list[str] | None = None) -> list[int]:
    found = results(made, store, Local(Site("local")), told=[].append if told is None else told.append)
    return [int(state.values["sum"]) for _, state in found]


def test_results_come_in_order_and_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = graph(1, 2, 3)
    assert sums(made, store) == [8, 9, 10, 27]
    assert store.present() == {GRAPH, GIVEN.key, *made.by_key}
    monkeypatch.setitem(task_functions.TASKS, "add", lambda *_: pytest.fail("it was there already"))
    assert sums(made, store) == [8, 9, 10, 27]


def test_keys_name_the_content() -> None:
    one, same, other = graph(1), graph(1), graph(2)
    assert one.by_key.keys() == same.by_key.keys()
    assert not one.by_key.keys() & other.by_key.keys()
    assert GIVEN.key != Given({"base": 7}, {"x": np.arange(4, dtype=np.int32)}).key
    again = graph_of(one.to_dict())
    assert (again.tasks, again.program) == (one.tasks, one.program)
    with pytest.raises(ValueError, match="sum"):
        Graph(one.tasks[::-1], [GIVEN], program={})
    with pytest.raises(FileError, match="cannot be read"):
        graph_of({"program": {}, "given": [], "tasks": [{"kind": 1}]})


def test_only_listed_functions_are_called(store: Store) -> None:
    for kind in ("os.system", "scale.task", "scale.other", "add"):
        with pytest.raises(FileError, match="no such task"):
            sums(Graph([Task(kind, "it", {})], program=program()), store)


@pytest.mark.parametrize("damage", ["lose", "damage"])
def test_what_storage_loses_is_made_again(tmp_path: Path, damage: str) -> None:
    made, store, told = graph(1, 2), FolderStore(tmp_path), list[str]()
    sums(made, store)
    for key in (made.tasks[0].key, made.tasks[2].key):
        path = tmp_path / f"{key}.state"
        path.unlink() if damage == "lose" else path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert sums(made, store, told) == [8, 9, 17]
    assert len(told) == (0 if damage == "lose" else 2)
    assert all("is damaged" in note and "made again" in note for note in told)
    for key in (made.tasks[2].key, GIVEN.key):  # what it reads, too
        (tmp_path / f"{key}.state").unlink()
    (tmp_path / f"{made.tasks[1].key}.state").write_bytes(b"bitsmith work 2\n")
    assert sums(made, store) == [8, 9, 17]


def test_storage_that_keeps_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    monkeypatch.setattr(store, "read", lambda key: (_ for _ in ()).throw(LostError(key, "is not there")))
    with pytest.raises(FileError, match="loses files again and again"):
        sums(Graph([Task("scale.add", "it", {"number": 1})], program=program()), store)


def test_storage_that_cannot_be_opened() -> None:
    with pytest.raises(UsageError, match=r"work=.*nosuch://x"):
        open_store("nosuch://x")


def put(made: Graph, store: Store) -> None:
    """What a head writes before it starts workers."""
    store.write(GIVEN.key, GIVEN.values, GIVEN.arrays)
    store.write(GRAPH, made.to_dict(), {})


def test_workers_share_the_tasks(tmp_path: Path) -> None:
    made, store = graph(*range(20)), FolderStore(tmp_path)
    put(made, store)
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda at=at: done.append(work(str(tmp_path), member=at, of=3)), daemon=True)
        for at in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 3
    assert sum(done) == 21
    assert store.present() >= made.by_key.keys()


def test_one_worker_does_what_others_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_PATIENCE", 0.0)
    made, store = graph(1, 2, 3), FolderStore(tmp_path)
    put(made, store)
    assert work(str(tmp_path), member=2, of=4) == 4


def test_a_worker_of_another_version_is_refused(tmp_path: Path) -> None:
    made, store = graph(1), FolderStore(tmp_path)
    made.program["bitsmith"] = "0.0.1"
    put(made, store)
    with pytest.raises(UsageError, match=r"bitsmith: 0\.0\.1 there"):
        work(str(tmp_path))
    assert not store.present() & made.by_key.keys()


def test_errors_of_tasks_reach_the_head(tmp_path: Path) -> None:
    made, store = graph(-1), FolderStore(tmp_path)
    put(made, store)
    with pytest.raises(TensorError, match="negative"):
        Worker(read_graph(store), store, Place(), 0, 1).work()
    with pytest.raises(TensorError, match=r"blk\.0: the number is negative"):
        raise_errors(store, store.present())
    assert store.present() == {GRAPH, GIVEN.key}  # told once


@pytest.mark.parametrize(
    "shortage",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OSError(12, "")],
)
def test_memory_that_runs_out_in_a_worker_reaches_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortage: Exception
) -> None:
    def short(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
        if arguments["number"] == 2:
            raise shortage
        return add(arguments, inputs, place)

    made, store = graph(1, 2), FolderStore(tmp_path)
    monkeypatch.setitem(task_functions.TASKS, "add", short)
    put(made, store)
    with pytest.raises(ResourceError, match=r"^number 2: a worker found no memory for it"):
        Worker(read_graph(store), store, Place(), 0, 1).work()
    with pytest.raises(ResourceError, match=r"number 2: a worker found no memory for it .* fewer workers="):
        raise_errors(store, store.present())
    monkeypatch.setitem(task_functions.TASKS, "add", add)
    assert sums(made, store) == [8, 9, 17]


def test_other_errors_of_tasks_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Result:
        raise RuntimeError("a mistake in a task")

    monkeypatch.setitem(task_functions.TASKS, "add", broken)
    with pytest.raises(RuntimeError, match="a mistake in a task"):
        sums(graph(1), FolderStore(tmp_path))


def test_workers_that_always_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_STARTS", 3)
    popen = subprocess.Popen
    dies = ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    monkeypatch.setattr(subprocess, "Popen", lambda words, **more: popen([words[0], *dies], **more))
    with pytest.raises(ResourceError, match=r"died 3 times in a row, the last time killed by the system.* workers="):
        list(results(graph(1), FolderStore(tmp_path), Local(Site("local", 2))))


def test_what_is_damaged_is_made_again_when_it_is_taken(tmp_path: Path) -> None:
    made, store, told = graph(1, 2), FolderStore(tmp_path), list[str]()
    sums(made, store)
    path = tmp_path / f"{made.tasks[1].key}.state"
    data = bytearray(path.read_bytes())
    data[16] ^= 1  # the first byte of its array
    path.write_bytes(data)
    taken: list[int] = []

    def take(state: State) -> None:
        taken.append(int(state.array("row")[0]))

    assert list(deliver(made, store, Local(Site("local")), take, told=told.append)) == [*made.tasks]
    assert taken == [8, 9, 17]
    assert len(told) == 1
    assert told[0].startswith("the result of number 2 in")


def test_worker_processes(tmp_path: Path) -> None:
    slept = [Task("scale.sleep", f"{at}", {"seconds": 0.01, "at": at}) for at in range(5)]
    last = Task("scale.sleep", "last", {"seconds": 0}, tuple(task.key for task in slept))
    made = Graph([*slept, last], program=program())
    found = [state.values["read"] for _, state in results(made, FolderStore(tmp_path), Local(Site("local", 2)))]
    assert found == [0, 0, 0, 0, 0, 5]


def test_a_worker_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no graph of tasks"):
        work(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="3/2: expected a member from 0 to 1"):
        work(str(tmp_path), member=3, of=2)


def test_unknown_executors() -> None:
    with pytest.raises(UsageError, match=r"executor=.*dask.* is unknown; expected local, ray, slurm, or ray://"):
        executor_of(Site("dask"))
    with pytest.raises(UsageError, match="workers= is missing"):
        executor_of(Site("slurm"))


def test_an_executor_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"executor=.ray. needs Ray, which is not installed.*bitsmith\[ray\]"):
        executor_of(Site("ray"))
