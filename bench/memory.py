"""Peak memory of `bitsmith quantize` on synthetic checkpoints with real shapes and random weights.

    python bench/memory.py                                   all shapes, to Q4_K_M
    python bench/memory.py --shape "8 layers" --to q8_0 --threads 2 --json
    python bench/memory.py --shape "8 layers" --shape "22 layers" --method gptq --tokens 4096 --limit 1500

Each shape is written to the work folder as a Hugging Face folder (BF16 safetensors, seeded normal weights, the
built-in model's tokenizer), quantized in a process of its own, and deleted. Needs up to 5 GB of disk. Fails where a
peak exceeds --limit (700 MB): peak memory must not grow with layers or rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from shapes import Shape, write_checkpoint

MB = 1_000_000


SHAPES: dict[str, Shape] = {
    "8 layers": Shape(8, 2048, 5632, 32000, 32, 4),
    "22 layers": Shape(22, 2048, 5632, 32000, 32, 4),
    "152000 x 4096 embedding": Shape(2, 4096, 11008, 152000, 32, 8),
}


@dataclass(frozen=True)
class Measured:
    """One run: sizes and peak memory in bytes, times in seconds. `cpu` adds up all cores."""

    shape: str
    parameters: int
    source_bytes: int
    output_bytes: int
    peak_memory: int
    wall: float
    cpu: float


def run_measured(command: list[str]) -> tuple[int, float, float]:
    """Run a command; its peak resident memory in bytes, wall and CPU seconds. Ends the program where it fails.

    The kernel counts this process's own size at the time of the call as a floor of the child's peak; it is small.
    """
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - started
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}\nexit code {child.returncode}\n{errors}")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit, wall, usage.ru_utime + usage.ru_stime


def measure(name: str, shape: Shape, work: Path, args: argparse.Namespace) -> Measured:
    """Write one checkpoint, quantize it, delete both."""
    folder = work / name.replace(" ", "-")
    output = work / f"{folder.name}.gguf"
    try:
        size = write_checkpoint(shape, folder, args.seed)
        command = [sys.executable, "-m", "bitsmith", "quantize", str(folder), "--to", args.to, "--out", str(output)]
        if args.threads:
            command += ["--threads", str(args.threads)]
        if args.method:
            command += ["--method", args.method, "--effort", args.effort, "--calibration-context", "256"]
            command += ["--calibration", "default", "--calibration-tokens", str(args.tokens), "--device", "cpu"]
        peak, wall, cpu = run_measured(command)
        return Measured(name, size // 2, size, output.stat().st_size, peak, wall, cpu)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
            output.unlink(missing_ok=True)


def show(results: list[Measured], to: str) -> None:
    """One table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("shape", "weights", "source", to, "peak memory", "wall", "CPU"):
        table.add_column(heading, justify="left" if heading == "shape" else "right")
    for r in results:
        table.add_row(
            r.shape,
            f"{r.parameters / 1e6:,.0f} M",
            f"{r.source_bytes / MB:,.0f} MB",
            f"{r.output_bytes / MB:,.0f} MB",
            f"{r.peak_memory / MB:,.0f} MB",
            f"{r.wall:.1f} s",
            f"{r.cpu:.1f} s",
        )
    Console(highlight=False, width=110).print(table)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="repeatable; default: all")
    parser.add_argument("--to", default="q4_k_m", help="a GGUF mix (default: q4_k_m)")
    parser.add_argument("--threads", type=int, help="given on to bitsmith")
    parser.add_argument("--method", help="calibrate on the built-in text (default: nearest codes, no calibration)")
    parser.add_argument("--effort", default="normal", help="of a calibrated method")
    parser.add_argument("--tokens", type=int, default=4096, help="to calibrate on, in windows of 256")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for checkpoints (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="leave checkpoints and outputs in the work folder")
    parser.add_argument("--limit", type=float, default=700.0, help="largest peak accepted, MB (10^6 bytes)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args()
    if args.keep and not args.work:
        parser.error("--keep needs --work")
    return args


def main() -> None:
    """Measure the shapes asked for."""
    args = parse_args()
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work) as temporary:
        work = args.work if args.keep else Path(temporary)
        results = [measure(name, SHAPES[name], work, args) for name in args.shape or SHAPES]
    if args.json:
        print(json.dumps([asdict(r) for r in results], indent=2))
    else:
        show(results, args.to)
    over = [r.shape for r in results if r.peak_memory > args.limit * MB]
    if over:
        raise SystemExit(f"peak memory above {args.limit:.0f} MB: {', '.join(over)}")


if __name__ == "__main__":
    main()
