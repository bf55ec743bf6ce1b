"""Runs that are killed at random times (SIGKILL) and started again: bytes, what is left, how much work was repeated.

    python bench/kills.py                          200 runs over five kinds
    python bench/kills.py --runs 20 --kind gptq --seed 1 --json

Each kind is first run without a break. Then it is killed at a random point of its processor time and started again, in
a folder of its own. Times are processor seconds, which do not depend on what else the machine does. Repeated work is
what both starts took beyond the run without a break and the start of the program (a dry run), as a share of the run's
own work. Fails where a file differs, or anything is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

TEXT = ("--calibration", "default", "--threads", "1")
KINDS: dict[str, tuple[str, ...]] = {
    "plain": ("quantize", "reference", "--to", "iq3_xxs", *TEXT),
    "gptq": ("quantize", "reference", "--to", "gptq/int4", "--method", "gptq", *TEXT),
    "learned": ("quantize", "reference", "--to", "q4_k_m", "--method", "learned", "--effort", "fast", *TEXT),
    "several": ("quantize", "reference", "--to", "awq/int4", "--to", "q2_k", "--to", "compressed/w8a8", *TEXT),
    "qat": ("tune", "qat", "reference", "--to", "q4_0", "--steps", "40", "--training-tokens", "32768", *TEXT),
}
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Found:
    """Of one kind. whole, start: processor seconds of a run without a break, and of its start; repeated: shares"""

    kind: str
    whole: float
    start: float
    kills: int = 0
    different: int = 0
    left: int = 0
    repeated: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the shares of work that was repeated."""
        return statistics.median(self.repeated) if self.repeated else 0.0


def run(words: Sequence[str], out: Path, *, kill_at: float | None = None) -> tuple[int, float]:
    """Run a command; its exit status, and its processor seconds. kill_at: kill it after so many processor seconds"""
    command = [sys.executable, "-m", "bitsmith", *words, "--out", str(out)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        if kill_at is not None and _used(child.pid) >= kill_at:
            child.kill()
            _, status, usage = os.wait4(child.pid, 0)
            break
        time.sleep(0.005)
    assert child.stderr is not None
    errors = child.stderr.read().decode()
    child.stderr.close()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode > 0:
        raise SystemExit(f"{' '.join(command)}: exit status {child.returncode}\n{errors}")
    return child.returncode, usage.ru_utime + usage.ru_stime


def _used(pid: int) -> float:
    """Processor seconds of a process so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK


def tree(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed_and_continued(words: Sequence[str], kind: str, runs: int, draw: random.Random, folder: Path) -> Found:
    """One kind: without a break, and so many times with one."""
    whole = folder / "whole"
    whole.mkdir()
    run(words, whole / "out")  # fills the caches of the system
    shutil.rmtree(whole)
    whole.mkdir()
    found = Found(kind, run(words, whole / "out")[1], run([*words, "--dry-run"], whole / "none")[1])
    expected = tree(whole)
    for _ in range(runs):
        again = folder / "again"
        again.mkdir()
        status, first = run(words, again / "out", kill_at=draw.uniform(0.0, found.whole))
        if status < 0:
            found.kills += 1
            _, second = run(words, again / "out")
            extra = first + second - found.whole - found.start
            found.repeated.append(max(0.0, extra) / max(found.whole - found.start, 1e-9))
        there = tree(again)
        found.left += there.keys() != expected.keys()
        found.different += any(there.get(name) != data for name, data in expected.items())
        shutil.rmtree(again)
    shutil.rmtree(whole)
    return found


def main() -> None:
    """Print a line a kind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="number of runs over all kinds")
    parser.add_argument("--kind", action="append", choices=KINDS, help="repeatable; default: all")
    parser.add_argument("--tokens", type=int, default=16384, help="of the calibration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kinds, draw, all_found = options.kind or list(KINDS), random.Random(options.seed), []
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            words = (*KINDS[kind], "--calibration-tokens", str(options.tokens))
            found = killed_and_continued(words, kind, -(-options.runs // len(kinds)), draw, Path(folder))
        all_found.append(found)
        if options.json:
            print(json.dumps({**asdict(found), "median": found.median}), flush=True)
        else:
            print(
                f"{kind}: {found.whole:.1f} s ({found.start:.1f} s of them the start), {found.kills} kills, "
                f"{found.different} different, {found.left} left something, repeated: median {found.median:.1%}, "
                f"most {max(found.repeated, default=0.0):.1%}",
                flush=True,
            )
    every = [share for found in all_found for share in found.repeated]
    if every and not options.json:
        print(f"all: {len(every)} kills, median of repeated work {statistics.median(every):.1%}")
    if any(found.different or found.left for found in all_found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
