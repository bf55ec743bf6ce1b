"""Ctrl-C while modules are imported: a quiet end with exit code 130, whatever is being imported."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bitsmith.cli.starting import quiet_start

PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
sys.argv = ["bitsmith", "plan", "reference", "--device", "rtx-3060"]
from bitsmith.cli import main
main()
"""


@pytest.mark.parametrize(
    "name",
    ["bitsmith.cli.starting", "bitsmith.cli.main", "click", "bitsmith.cli.plan", "bitsmith.api", "numpy", "rich.table"],
)
def test_an_interrupted_import_ends_quietly(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name=name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert done.stderr.strip() == "Interrupted."


@pytest.mark.parametrize(
    ("note", "last"),
    [
        ("", "Interrupted; no half-written file was left."),
        ("it was stopped while names changed", "Interrupted; it was stopped while names changed."),
    ],
)
def test_an_interrupt_says_what_it_left(note: str, last: str, tiny: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "import bitsmith.pipeline.making as making\n"
        "def stop(*a, **k):\n"
        "    interrupt = KeyboardInterrupt()\n"
        f"    interrupt.__notes__ = [{note!r}] if {note!r} else []\n"
        "    raise interrupt\n"
        "making._Making._round_nearest = stop\n"
        f"sys.argv = ['bitsmith', 'quantize', {str(tiny)!r}, '--to', 'q8_0', '--out', {str(tmp_path / 'x.gguf')!r}]\n"
        "from bitsmith.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (130, last)


def test_other_handlers_stay() -> None:
    """Those of a program that imports the command line, and those that a shell has set to ignore."""
    usual = signal.getsignal(signal.SIGINT)
    try:
        for handler in (signal.SIG_IGN, lambda *_: None):
            signal.signal(signal.SIGINT, handler)
            with quiet_start():
                assert signal.getsignal(signal.SIGINT) is handler
            assert signal.getsignal(signal.SIGINT) is handler
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with quiet_start():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, usual)
