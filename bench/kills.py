"""Runs that are killed at random times (SIGKILL) and started again: bytes, what is left, how much work was repeated.

    python bench/kills.py                          200 runs over seven kinds
    python bench/kills.py --runs 20 --kind gptq --seed 1 --json
    python bench/kills.py --kind qat --model FOLDER --tokens 2048    a small model
    python bench/kills.py --kind qat -- --steps 8 --batch 1          more options of the command, behind "--"

Each kind is first run without a break. Then it is killed at a random point of its processor time and started again, in
a folder of its own. Times are processor seconds, which do not depend on what else the machine does. Repeated work is
what both starts took beyond the run without a break and the start of the program (a dry run), as a share of the run's
own work. The cache folder of each run is its own, and is kept over its break. Fails where a file differs, or anything
is left.
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
from itertools import pairwise
from pathlib import Path

TEXT = ("--calibration", "default", "--threads", "1")
KINDS: dict[str, tuple[str, ...]] = {
    "plain": ("quantize", "reference", "--to", "iq3_xxs", *TEXT),
    "gptq": ("quantize", "reference", "--to", "gptq/int4", "--method", "gptq", *TEXT),
    "learned": ("quantize", "reference", "--to", "q4_k_m", "--method", "learned", "--effort", "fast", *TEXT),
    "several": ("quantize", "reference", "--to", "awq/int4", "--to", "q2_k", "--to", "compressed/w8a8", *TEXT),
    "qat": ("tune", "qat", "reference", "--to", "q4_0", "--steps", "40", "--training-tokens", "32768", *TEXT),
    "budget": ("quantize", "reference", "--bits", "4.25", "--threads", "1"),
    "imatrix": ("imatrix", "reference", "--calibration", "default"),
}
UNCALIBRATED = ("budget",)
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


def run(words: Sequence[str], folder: Path, *, kill_at: float | None = None) -> tuple[int, float]:
    """Run a command; its exit status, and its processor seconds. kill_at: kill it after so many processor seconds"""
    targets = [word for before, word in pairwise(words) if before == "--to"]
    name = "out" if words[0] == "tune" or any("/" in target for target in targets) else "out.gguf"
    command = [sys.executable, "-m", "bitsmith", *words, "--out", str(folder / name)]
    caches = {**os.environ, "XDG_CACHE_HOME": str(folder.with_name("cache"))}
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=caches)
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
    run(words, whole)  # fills the caches of the system
    _remove(whole)
    whole.mkdir()
    took = run(words, whole)[1]
    expected = tree(whole)
    (folder / "none").mkdir()
    found = Found(kind, took, run([*_dry(words), "--dry-run"], folder / "none")[1])
    for _ in range(runs):
        again = folder / "again"
        again.mkdir()
        status, first = run(words, again, kill_at=draw.uniform(0.0, found.whole))
        if status < 0:
            found.kills += 1
            ended = tree(again) == expected  # killed between the last file and the end: a second start is refused
            second = found.start if ended else run(words, again)[1]
            extra = first + second - found.whole - found.start
            found.repeated.append(max(0.0, extra) / max(found.whole - found.start, 1e-9))
            print(f"{kind}: kill {found.kills}, repeated {found.repeated[-1]:.1%}", file=sys.stderr, flush=True)
        there = tree(again)
        found.left += there.keys() != expected.keys()
        found.different += any(there.get(name) != data for name, data in expected.items())
        _remove(again)
    return found


def _dry(words: Sequence[str]) -> list[str]:
    """A command that starts as this one does, and knows --dry-run without measuring."""
    if words[0] == "imatrix":
        return ["quantize", words[1], "--to", "q4_0", *words[2:]]
    at = words.index("--bits") if "--bits" in words else len(words)
    return [*words[:at], *words[at + 2 :]]


def _remove(folder: Path) -> None:
    """Remove a run, with its caches."""
    shutil.rmtree(folder)
    shutil.rmtree(folder.with_name("cache"), ignore_errors=True)


def main() -> None:
    """Print a line a kind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="number of runs over all kinds")
    parser.add_argument("--kind", action="append", choices=KINDS, help="repeatable; default: all")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--tokens", type=int, default=16384, help="of the calibration; a training takes twice as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("more", nargs="*", help="options of all commands, behind --")
    options = parser.parse_args()
    kinds, draw, all_found = options.kind or list(KINDS), random.Random(options.seed), []
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            words = [options.model if word == "reference" else word for word in KINDS[kind]]
            words += [] if kind in UNCALIBRATED else ["--calibration-tokens", str(options.tokens)]
            if kind == "qat":
                words[words.index("--training-tokens") + 1] = str(2 * options.tokens)
            words += options.more  # the last of an option counts
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
