"""What a run leaves that is killed, interrupted or refused by the disk at any of its steps: every step is tried.

The old output or the new one is whole under its name, at once or after the next start, and nothing else is left.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bitsmith.containers import renames
from bitsmith.containers.destination import Destination
from bitsmith.containers.output import output_files
from bitsmith.containers.reservation import Reservation, settle
from bitsmith.errors import FileError
from tests.containers.outputs import parts, shards, tree, write

STEPS = ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "truncate", "pwrite")
EXTRAS = {"config.json": b"{}", "additional_chat_templates/tool.jinja": b"{{ tools }}"}
OLD_EXTRAS = {"config.json": b"{'old': 1}", "tokenizer.model": b"old"}


@dataclass(frozen=True)
class Scenario:
    """An output and what it replaces.

    before: number of files of the old output; 0: there is none
    after: number of files of the new one
    """

    before: int
    after: int
    as_folder: bool = False
    exchange: bool = True

    def __str__(self) -> str:
        kind = "folder" if self.as_folder else "files"
        return f"{kind}-{self.before}-{self.after}{'' if self.exchange else '-plain'}"

    def target(self, folder: Path) -> Path:
        return folder / ("m" if self.as_folder else "m.gguf")

    def first(self, folder: Path) -> Path:
        """The path that a user would open."""
        return self.target(folder) if self.as_folder else folder / parts(self.after)[0].filename

    def destination(self, folder: Path, *, old: bool = False) -> Destination:
        count = self.before if old else self.after
        if not self.as_folder:
            return Destination(self.target(folder), parts(count))
        return Destination(self.target(folder), shards(count), OLD_EXTRAS if old else EXTRAS, True)

    def prepare(self, folder: Path) -> None:
        """Put the old output there, and a neighbour that nobody may touch."""
        folder.mkdir()
        (folder / "mine-00001-of-00009.gguf").write_bytes(b"precious")
        if self.before:
            with output_files(self.destination(folder, old=True)) as files:
                write(files, b"1111")

    def run(self, folder: Path) -> None:
        """Write the new output, and replace the old one."""
        with output_files(self.destination(folder), force=bool(self.before)) as files:
            write(files, b"2222")

    def killed(self, folder: Path, at: int) -> bool:
        """The same, killed before step `at` as by SIGKILL, so that nothing cleans up. False if it was done before."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with watched(Stop(lambda: os._exit(9), at), self):
                    self.run(folder)
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9), at
        return code == 9


QUICK = [
    Scenario(1, 1),
    Scenario(3, 2),
    Scenario(0, 2, exchange=False),
    Scenario(1, 2, as_folder=True),
    Scenario(1, 2, as_folder=True, exchange=False),
]
MORE = [
    *(Scenario(before, after) for before, after in ((0, 1), (0, 3), (3, 3), (2, 3), (3, 1), (1, 3))),
    *(Scenario(before, after, exchange=False) for before, after in ((0, 1), (1, 1), (3, 2))),
    *(Scenario(0, 2, as_folder=True, exchange=exchange) for exchange in (True, False)),
]
SCENARIOS = [*QUICK, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE)]


@dataclass
class Stop:
    """Counts the steps that change the disk, and calls `act` at one of them.

    at: number of the step, from 0
    after: act after the step, not in place of it
    """

    act: Callable[[], None]
    at: int
    after: bool = False
    count: int = field(default=0)

    def step(self, call: Callable[..., Any], *words: Any, **more: Any) -> Any:
        number, self.count = self.count, self.count + 1
        if number == self.at and not self.after:
            self.act()
        done = call(*words, **more)
        if number == self.at and self.after:
            self.act()
        return done


@contextmanager
def watched(stop: Stop, scenario: Scenario) -> Iterator[None]:
    """Every step that changes the disk goes through `stop`."""
    with pytest.MonkeyPatch.context() as patch:

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *words, **more: stop.step(call, *words, **more)

        for name in STEPS:
            patch.setattr(os, name, counted(getattr(os, name)))
        create = os.open
        patch.setattr(
            os,
            "open",
            lambda path, flags, *rest, **more: (
                stop.step(create, path, flags, *rest, **more)
                if flags & os.O_CREAT
                else create(path, flags, *rest, **more)
            ),
        )
        patch.setattr(renames, "_renameat2", counted(renames._renameat2) if scenario.exchange else lambda *_: False)
        yield


def ends(scenario: Scenario, tmp_path: Path) -> tuple[dict[str, bytes | None], dict[str, bytes | None]]:
    """The folder before and after a run that nothing stops."""
    folder = tmp_path / "whole"
    scenario.prepare(folder)
    before = tree(folder)
    scenario.run(folder)
    return before, tree(folder)


def next_start(scenario: Scenario, folder: Path) -> dict[str, bytes | None]:
    """The folder after the next run has claimed the output."""
    Reservation([scenario.destination(folder)], force=True).release()
    return tree(folder)


def shown(folder: Path) -> dict[str, bytes | None]:
    """The folder without temporary files."""
    return {name: data for name, data in tree(folder).items() if not name.startswith(".")}


@pytest.fixture(autouse=True)
def _nothing_has_to_reach_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_killed_run_leaves_the_old_output_or_the_new_one(scenario: Scenario, tmp_path: Path) -> None:
    """Whoever opens the model next finds it whole, and the next run finds nothing that it would leave lying."""
    before, after = ends(scenario, tmp_path)
    outcomes = []
    for at in range(1000):
        folder = tmp_path / str(at)
        scenario.prepare(folder)
        killed = scenario.killed(folder, at)
        settle(scenario.first(folder))
        found = shown(folder)
        assert found in (before, after), at
        assert next_start(scenario, folder) == found, at
        outcomes.append(found)
        if not killed:
            break
    turn = outcomes.index(after)
    assert outcomes == [before] * turn + [after] * (len(outcomes) - turn)
    assert turn > 8


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_the_next_run_mends_what_a_killed_run_left(scenario: Scenario, tmp_path: Path) -> None:
    """Without anybody opening the model between."""
    before, after = ends(scenario, tmp_path)
    for at in range(1000):
        folder = tmp_path / str(at)
        scenario.prepare(folder)
        killed = scenario.killed(folder, at)
        assert next_start(scenario, folder) in (before, after), at
        if not killed:
            break


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("after_it", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_an_interrupt_leaves_the_old_output_or_the_new_one(scenario: Scenario, after_it: bool, tmp_path: Path) -> None:
    """SIGINT or SIGTERM, once: the run cleans up after itself as far as it can."""
    before, after = ends(scenario, tmp_path)
    for at in range(1000):
        folder = tmp_path / str(at)
        scenario.prepare(folder)
        stop = Stop(interrupt, at, after_it)
        note = ""
        try:
            with watched(stop, scenario):
                scenario.run(folder)
        except KeyboardInterrupt as error:
            note = " ".join(getattr(error, "__notes__", ()))
        if "while names changed" not in note:
            assert shown(folder) in (before, after), at
        settle(scenario.first(folder))
        assert next_start(scenario, folder) in (before, after), at
        if stop.count <= at:
            break


def refuse() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_step_that_the_disk_refuses_is_an_error_that_says_what_is_left(scenario: Scenario, tmp_path: Path) -> None:
    before, after = ends(scenario, tmp_path)
    for at in range(1000):
        folder = tmp_path / str(at)
        scenario.prepare(folder)
        stop = Stop(refuse, at)
        message = ""
        try:
            with watched(stop, scenario):
                scenario.run(folder)
        except FileError as error:
            message = str(error)
        found = tree(folder)
        if "is written and whole" in message:
            assert shown(folder) == after, at
        elif "could not be removed" in message:
            assert found != before, at
        elif "while names changed" in message:
            settle(scenario.first(folder))
        elif message:
            assert ("is unchanged" in message) == bool(scenario.before) or "check the name" in message, (at, message)
            assert {n: d for n, d in found.items() if not n.endswith(".lock")} == before, (at, message)
        else:
            assert {n: d for n, d in found.items() if not n.endswith(".lock")} == after, at
        assert next_start(scenario, folder) in (before, after), at
        if stop.count <= at:
            break
