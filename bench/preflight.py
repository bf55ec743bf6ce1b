"""Predictions of `bitsmith quantize` against measurements: peak memory and time of ten kinds of run.

    python bench/preflight.py                              all kinds, the built-in model
    python bench/preflight.py --kind gptq --kind awq --model FOLDER --tokens 8192
    python bench/preflight.py --json

Each kind runs in a process of its own. Memory: what the plan says, and the largest the process had. Time: what the
plan says and what the first block says, beside wall-clock and processor seconds; on a machine with other work compare
the processor seconds that the first block said ("corrected") with those of its stage, or give --cpu: the plan then
measures this machine by the processor's clock, one thread works, and what it says is compared with the run's processor
seconds. Fails where a peak is off by more than --most (15 %).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CALIBRATED = ("--calibration", "default")
KINDS: dict[str, tuple[str, ...]] = {
    "plain q4_k_m": ("quantize", "--to", "q4_k_m"),
    "plain q8_0": ("quantize", "--to", "q8_0"),
    "iq2_xs": ("quantize", "--to", "iq2_xs", *CALIBRATED),
    "gptq fast": ("quantize", "--to", "gptq/int4", "--method", "gptq", "--effort", "fast"),
    "gptq": ("quantize", "--to", "gptq/int4", "--method", "gptq"),
    "learned": ("quantize", "--to", "gptq/int4", "--method", "learned", "--effort", "fast"),
    "awq": ("quantize", "--to", "awq/int4", "--method", "awq"),
    "several": ("quantize", "--to", "q4_k_m", "--to", "gptq/int4", *CALIBRATED),
    "budget": ("quantize", "--bits", "4.25"),
    "qat scales": ("tune", "qat", "--to", "gptq/int4", "--steps", "8", "--training-tokens", "16384"),
}
PLAIN = ("plain q4_k_m", "plain q8_0", "budget")


def main() -> None:
    """Measure the kinds asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="repeatable; default: all")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--tokens", type=int, default=16384, help="to calibrate on")
    parser.add_argument("--most", type=float, default=15.0, help="largest error of a peak accepted, %%")
    parser.add_argument("--cpu", action="store_true", help="compare processor seconds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cpu:
        time.perf_counter = time.process_time  # before bitsmith is imported
    if args.child is not None:
        print(json.dumps(run(args.child)))
        return
    rows = [measured(kind, args.model, args.tokens, cpu=args.cpu) for kind in args.kind or KINDS]
    if args.json:
        print(json.dumps(rows, indent=2))
    off = [row["kind"] for row in rows if abs(row["memory"] / row["peak"] - 1) > args.most / 100]
    if off:
        raise SystemExit(f"peak memory is off by more than {args.most:g} %: {', '.join(off)}")


def measured(kind: str, model: str, tokens: int, *, cpu: bool) -> dict[str, Any]:
    """One kind, in a process of its own."""
    count = 2 if KINDS[kind][0] == "tune" else 1
    command, words = KINDS[kind][:count], KINDS[kind][count:]
    further = () if kind in PLAIN else ("--calibration-tokens", str(tokens))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / ("out.gguf" if kind in (*PLAIN, "iq2_xs") else "out")
        call = [*command, model, *words, *further, "--out", str(out), "--json", "--quiet"]
        call += ["--threads", "1"] if cpu else []
        own = [sys.executable, __file__, *(["--cpu"] if cpu else []), "--child"]
        done = subprocess.run([*own, *call], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind}: exit code {done.returncode}")
    row = {"kind": kind, **json.loads(done.stdout.splitlines()[-1])}
    print(as_line(row), file=sys.stderr, flush=True)
    return row


def run(arguments: list[str]) -> dict[str, Any]:
    """Run one command in this process. Its JSON output is caught, and its stages are timed."""
    import contextlib
    import io

    import click

    from bitsmith.cli.main import COMMANDS, _bitsmith
    from bitsmith.pipeline.course import Course
    from bitsmith.system.machine import peak_memory

    assert arguments[0] in COMMANDS
    stages: dict[str, list[float]] = {}
    passed = Course.__call__

    def timed(self: Course, progress: Any) -> None:
        passed(self, progress)
        if progress.unit == "blocks":
            stages.setdefault(progress.stage, []).append(time.process_time())
        for name, each in self.corrected.items():
            found[name] = each.cpu_seconds

    found: dict[str, float] = {}
    Course.__call__ = timed  # type: ignore[method-assign]
    began, worked, said = time.monotonic(), time.process_time(), io.StringIO()  # modules are imported by now
    with contextlib.redirect_stdout(said), contextlib.suppress(click.exceptions.Exit):
        _bitsmith.main(arguments, prog_name="bitsmith", standalone_mode=False)
    result = json.loads(said.getvalue())
    outputs = result if isinstance(result, list) else [result]
    return {
        "memory": outputs[0]["expected_memory_bytes"],
        "peak": peak_memory(),
        "expected_seconds": sum(each["expected_seconds"] for each in outputs),
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - worked,
        "corrected": {name: [found[name], times[-1] - times[0]] for name, times in stages.items() if name in found},
    }


def as_line(row: dict[str, Any]) -> str:
    """One row of the table."""
    stages = "; ".join(
        f"{name} {said:.1f} of {took:.1f} s ({100 * (said / took - 1):+.0f} %)"
        for name, (said, took) in row["corrected"].items()
    )
    off = 100 * (row["memory"] / row["peak"] - 1)
    return (
        f"{row['kind']:<13} memory {row['memory'] / 1e6:6.0f} of {row['peak'] / 1e6:6.0f} MB ({off:+5.1f} %), "
        f"plan {row['expected_seconds']:6.1f} s, wall {row['seconds']:6.1f} s, CPU {row['cpu_seconds']:6.1f} s "
        f"({100 * (row['expected_seconds'] / row['cpu_seconds'] - 1):+.0f} %)"
        + (f"; first block: {stages}" if stages else "")
    )


if __name__ == "__main__":
    main()
