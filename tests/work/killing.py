"""Runs of the command that are killed at a chosen place, as by SIGKILL, so that nothing cleans up."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PROGRAM = """
import os, signal, sys
from bitsmith.work import folder, ledger, pace
pace.LEAST_SECONDS, pace.SHARE = 0.0, 1e9
sent, left = getattr(signal, sys.argv[1]), int(sys.argv[2])
sys.argv[1:3] = []

def counted(function):
    def call(*words, **named):
        global left
        found = function(*words, **named)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), sent)
        return found
    return call

folder.write_state = counted(folder.write_state)
ledger.WorkLedger.add = counted(ledger.WorkLedger.add)
from bitsmith.cli.main import main
main()
"""


def start(words: Sequence[str | Path], *, at: int, sent: str = "SIGKILL") -> subprocess.CompletedProcess[str]:
    """Run a command of bitsmith's that keeps its state as often as it can.

    at: it gets a signal once state was kept so many times; 0: never
    """
    call = [sys.executable, "-c", _PROGRAM, sent, str(at), *map(str, words)]
    return subprocess.run(call, capture_output=True, text=True)


def killed(words: Sequence[str | Path], *, at: int) -> bool:
    """The same with SIGKILL. False if the run ended before."""
    done = start(words, at=at)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0
