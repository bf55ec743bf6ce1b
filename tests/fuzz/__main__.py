"""`make fuzz`: damaged and hostile inputs through every command, for a time, in processes that are watched.

A case is made from its number alone. It fails if the command ends with a traceback or a signal, takes more than 20
seconds or 1 GB, or sends orders to the terminal. Failing inputs are written again below build/fuzz/NUMBER.

    python -m tests.fuzz [--seconds N] [--cases N] [--first NUMBER] [--jobs N] [--most-seconds N]
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.cases import make_case
from tests.fuzz.seeds import make_seeds

KEPT = Path("build") / "fuzz"


@dataclass
class Tally:
    """What happened so far."""

    done: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, list[str]]] = field(default_factory=list)


def main() -> int:
    """Run; the exit code is 1 if any case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS", "300")))
    parser.add_argument("--cases", type=int, default=1 << 60, help="stop after so many cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--most-seconds", type=float, default=20.0, help="for one case; more on a busy machine")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as name:
        seeds = make_seeds(Path(name))
        tally, lock = Tally(), threading.Lock()
        end = time.monotonic() + chosen.seconds
        threads = [
            threading.Thread(target=watch, args=(seeds, chosen.first + job, chosen, end, tally, lock))
            for job in range(chosen.jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, wrong, words in tally.failures:
            keep(seeds, number, wrong, words)
    listed = ", ".join(f"{name} {times}" for name, times in tally.commands.most_common())
    print(f"{tally.done} cases ({listed}): {len(tally.failures)} failures")
    return 1 if tally.failures else 0


def watch(seeds: Path, first: int, chosen: Any, end: float, tally: Tally, lock: threading.Lock) -> None:
    """Start workers, one after the other, until the time or the cases are over."""
    number = first
    last = chosen.first + chosen.cases
    while time.monotonic() < end and number < last:
        worker = start(seeds, number, chosen)
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=forward, args=(worker, lines), daemon=True).start()
        current: dict[str, Any] = {}
        while time.monotonic() < end and number < last:
            wrong = ""
            try:
                line = lines.get(timeout=chosen.most_seconds if current else 300.0)
            except queue.Empty:
                wrong = f"took more than {chosen.most_seconds:.0f} s"
            else:
                if not line:
                    wrong = f"the process ended with code {worker.wait()}"
                elif "words" in (found := json.loads(line)):
                    current = found
                    continue
                else:
                    wrong = found["wrong"]
            with lock:
                tally.done += 1
                tally.commands[current["words"][0] if current else "?"] += 1
                if wrong:
                    tally.failures.append((number, wrong, current.get("words", [])))
                    print(f"case {number}: {' '.join(current.get('words', []))}\n  {wrong.strip()[-600:]}", flush=True)
            number += chosen.jobs
            current = {}
            if wrong.startswith(("took more than", "the process ended")):
                break
        worker.kill()
        worker.wait()


def start(seeds: Path, first: int, chosen: Any) -> subprocess.Popen[str]:
    """A worker. It sees no terminal, no network and no screen."""
    imported = ("torch", "gguf") if chosen.cases > 1000 else ()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.worker", str(seeds), str(first), str(chosen.jobs), *imported],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


def forward(worker: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    """Put the worker's lines into the queue, and an empty one at its end."""
    assert worker.stdout is not None
    for line in worker.stdout:
        lines.put(line)
    lines.put("")


def keep(seeds: Path, number: int, wrong: str, words: list[str]) -> None:
    """Write the input of a failed case again, with what happened."""
    folder = KEPT / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = make_case(number, seeds, folder)
    told = f"bitsmith {' '.join(words)}\ndamaged: {case.damaged.relative_to(folder)}\n\n{wrong}\n"
    (folder / "report.txt").write_text(told, "utf-8", "backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
