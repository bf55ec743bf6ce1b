"""One run at a time writes an output: by the system's lock, or where there is none by the lock file's content."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitsmith.containers import claim
from bitsmith.containers.claim import Claim
from bitsmith.containers.output_names import OutputNames
from bitsmith.errors import UsageError


def names_of(target: Path) -> OutputNames:
    return OutputNames.of(target, as_folder=False)


def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)


@pytest.mark.parametrize("flock", [True, False])
def test_a_claim_is_exclusive_until_it_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool
) -> None:
    if not flock:
        no_flock(monkeypatch)
    names = names_of(tmp_path / "m.gguf")
    first = Claim(names)
    with pytest.raises(UsageError, match=rf"m\.gguf: another run is writing .*process {os.getpid()} on .*, since 20"):
        Claim(names)
    Claim(names_of(tmp_path / "other.gguf")).release()
    first.release()
    assert list(tmp_path.iterdir()) == []
    Claim(names).release()


def test_all_parts_of_a_set_are_one_output(tmp_path: Path) -> None:
    held = Claim(names_of(tmp_path / "m.gguf"))
    with pytest.raises(UsageError, match="another run"):
        Claim(names_of(tmp_path / "m-00002-of-00003.gguf"))
    held.release()


@pytest.mark.parametrize("flock", [True, False])
def test_another_process_is_named_while_it_runs_and_forgotten_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool
) -> None:
    """Killed, it leaves its lock file."""
    if not flock:
        no_flock(monkeypatch)
    names = names_of(tmp_path / "m.gguf")
    program = (
        "import sys, pathlib\n"
        "from bitsmith.containers.claim import Claim\n"
        "from bitsmith.containers.output_names import OutputNames\n"
        f"held = Claim(OutputNames.of(pathlib.Path({str(tmp_path / 'm.gguf')!r}), as_folder=False))\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=f"process {process.pid} on "):
            Claim(names)
        process.kill()
        process.wait()
    assert names.lock.exists()
    Claim(names).release()
    assert not names.lock.exists()


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({}, False),
        ({"ticks": "1"}, True),  # an earlier process of the same number, as in a container
        ({"boot": "another"}, True),
        ({"pid": 2**22 + 1}, True),
        ({"pid": 10**30}, True),
        ({"host": "elsewhere"}, False),
        ({"host": None}, False),
    ],
)
def test_without_flock_a_lock_file_tells_whether_its_process_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], stale: bool
) -> None:
    no_flock(monkeypatch)
    names = names_of(tmp_path / "m.gguf")
    names.lock.write_text(json.dumps({**claim._this_process(), **changes}))
    if stale:
        Claim(names).release()
        assert not names.lock.exists()
    else:
        with pytest.raises(UsageError, match=r"If that run has ended, remove .*\.m\.gguf\.bitsmith\.lock"):
            Claim(names)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"[" * 5000, b'{"pid": "\\u001b[2J"}'])
def test_a_lock_file_may_hold_anything(tmp_path: Path, content: bytes) -> None:
    names = names_of(tmp_path / "m.gguf")
    names.lock.write_bytes(content)
    Claim(names).release()


def test_a_lock_file_that_was_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its run ends between our opening and our locking it."""
    names = names_of(tmp_path / "m.gguf")
    names.lock.write_bytes(b"")
    lock = fcntl.flock
    tries = []

    def late(handle: int, kind: int) -> None:
        if not tries:
            names.lock.unlink()
        tries.append(handle)
        lock(handle, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    held = Claim(names)
    assert len(tries) == 2
    assert names.lock.exists()
    held.release()
