"""Runs cases one after the other in this process, and writes lines of JSON: one before each case, one after it.

python -m tests.fuzz.worker SEEDS FIRST STEP [MODULE]...: cases FIRST, FIRST + STEP, ... until it is ended.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from bitsmith.cli import main
from tests.fuzz.cases import Case, make_case

MOST_MEMORY = 1 << 30
_ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")


def run_case(case: Case) -> str:
    """What went wrong; empty if nothing. A damaged input should give an error, or work."""
    crashed, code = "", 0
    with _streams(case.typed) as printed:
        sys.argv = ["bitsmith", *case.words]
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        except BaseException:
            crashed = traceback.format_exc()
    out, err = printed
    if crashed or code not in (0, 1, 2):
        return crashed or f"exit code {code}: {err}"
    if code and not err.strip() and "--json" not in case.words:
        return f"exit code {code} without a word"
    for sign in ("Traceback (most recent", "panicked at", "out of memory", "Warning: invalid", "RuntimeWarning"):
        if sign in err:
            return f"{sign}: {err}"
    generated = case.words[0] in ("run", "chat")  # generated text is not a message
    orders = _ORDERS.findall(err + ("" if generated else out))
    return f"orders to the terminal: {orders[:9]}: {(err + out)[:400]!r}" if orders else ""


@contextmanager
def _streams(typed: str) -> Iterator[list[str]]:
    """Files for the standard streams, also of C and Rust; the list has what was printed on both at the end."""
    files = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115
    files[0].write(typed.encode())
    files[0].seek(0)
    saved = [os.dup(number) for number in range(3)]
    before = sys.stdin, sys.stdout, sys.stderr
    printed: list[str] = []
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    try:
        yield printed
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before
        for number, descriptor in enumerate(saved):
            os.dup2(descriptor, number)
            os.close(descriptor)
        for file in files:
            file.seek(0)
        printed += [file.read().decode("utf-8", "replace") for file in files[1:]]
        for file in files:
            file.close()


def _reset_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The largest memory of this process in bytes, on Linux since the last reset."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def work(seeds: Path, first: int, step: int, imported: Sequence[str]) -> None:
    """Run cases until the process is ended. imported: modules whose import takes seconds and is no part of a case"""
    for name in imported:
        if find_spec(name) is not None:
            import_module(name)
    report = os.fdopen(os.dup(1), "w", buffering=1)
    for number in count(first, step):
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        case = make_case(number, seeds, folder)
        print(json.dumps({"number": number, "words": case.words, "damaged": str(case.damaged)}), file=report)
        _reset_peak()
        wrong = run_case(case)
        if not wrong and _peak() > MOST_MEMORY:
            wrong = f"took {_peak() >> 20} MB of memory"
        shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps({"done": number, "wrong": wrong}), file=report)


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
