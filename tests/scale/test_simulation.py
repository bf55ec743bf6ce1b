"""Simulated clusters: times by arithmetic, and the same graph with tasks that really sleep."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bitsmith.scale.results import GRAPH
from bitsmith.scale.simulation import Cluster, Need, simulate, sleeping
from bitsmith.scale.store import FolderStore
from bitsmith.scale.task import Graph, Task
from bitsmith.scale.worker import work
from bitsmith.work.key import program

ENDLESS = 1e30


def graph(count: int, *, chain: bool = False) -> Graph:
    tasks: list[Task] = []
    for at in range(count):
        inputs = (tasks[-1].key,) if chain and tasks else ()
        tasks.append(Task("scale.sleep", f"task {at}", {"at": at}, inputs))
    return Graph(tasks, program=program())


def test_computing_is_shared() -> None:
    made = graph(12)
    needs = {task.key: Need(0, 2.0, 0) for task in made.tasks}
    found = {n: simulate(made, needs, Cluster(n, ENDLESS, ENDLESS, ENDLESS)) for n in (1, 4, 5, 100)}
    assert {n: each.seconds for n, each in found.items()} == {1: 24.0, 4: 6.0, 5: 6.0, 100: 2.0}
    assert found[4].busy == 1.0
    assert found[5].busy == pytest.approx(24 / 30)


def test_what_depends_waits() -> None:
    made = graph(5, chain=True)
    needs = {task.key: Need(0, 1.0, 0) for task in made.tasks}
    assert simulate(made, needs, Cluster(4, ENDLESS, ENDLESS, ENDLESS)).seconds == 5.0


def test_storage_and_disk_limit() -> None:
    made = graph(8)
    needs = {task.key: Need(100.0, 0.0, 50.0) for task in made.tasks}
    found = simulate(made, needs, Cluster(4, link=100.0, storage=100.0, disk=ENDLESS))
    assert found.working == pytest.approx(8 * 150 / 100)  # four share the storage
    assert found.moved == 8 * 200
    slow = simulate(made, needs, Cluster(4, link=ENDLESS, storage=ENDLESS, disk=10.0))
    assert slow.seconds == pytest.approx(2 * 8 * 50 / 10)  # written, and read back
    assert slow.waiting == 8 * 50


def test_workers_can_sleep_it(tmp_path: Path) -> None:
    made = graph(30)
    needs = {task.key: Need(0, 1.0, 0) for task in made.tasks}
    asleep = sleeping(made, needs, Cluster(3, ENDLESS, ENDLESS, ENDLESS), 0.001)
    store = FolderStore(tmp_path)
    store.write(GRAPH, asleep.to_dict(), {})
    threads = [threading.Thread(target=work, args=(str(tmp_path),), kwargs={"member": n, "of": 3}) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert store.present() == {GRAPH, *asleep.by_key}
