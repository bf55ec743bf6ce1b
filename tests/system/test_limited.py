"""A process with limits that is ended from outside."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bitsmith.system.limited import LimitedProcess, LimitError

TASK = """
import os, signal

def answer(request):
    if request.get("end"):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"twice": 2 * request["number"], "process": os.getpid()}
"""


@pytest.fixture
def process(tmp_path: Path) -> LimitedProcess:
    task = tmp_path / "task.py"
    task.write_text(TASK)
    return LimitedProcess(task, seconds=20)


def test_one_that_was_ended_while_it_waited_is_started_again(process: LimitedProcess) -> None:
    first = process.ask({"number": 1})
    os.kill(first["process"], signal.SIGKILL)
    os.waitid(os.P_PID, first["process"], os.WEXITED | os.WNOWAIT)
    second = process.ask({"number": 2})
    assert second["twice"] == 4
    assert second["process"] != first["process"]


def test_one_that_is_ended_while_it_works_is_not_called_slow(process: LimitedProcess) -> None:
    with pytest.raises(LimitError, match="ended from outside"):
        process.ask({"number": 1, "end": True})
    assert process.ask({"number": 3})["twice"] == 6
