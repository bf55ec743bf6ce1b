"""Processor time of calibrated methods, beside llm-compressor's GPTQ and llama-imatrix on the same text.

    python bench/calibration_speed.py --model reference --text calibration.txt --tokens 65536 --context 256 \
        --peer-python PYTHON --llama-cpp DIR

Every row is a process of its own; seconds are those of the processor, of all its threads. llama-imatrix gets the model
as a BF16 GGUF file, and a beginning of the text that has about as many tokens as ours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import bitsmith

PEERS = Path(__file__).parent / "peers"
OURS = {
    "gptq fast": ("native/int4", "gptq", "fast"),
    "gptq normal": ("native/int4", "gptq", "normal"),
    "awq": ("native/int4", "awq", ""),
    "smoothquant w8a8": ("compressed/w8a8", "smoothquant", ""),
    "learned int3": ("native/int3", "learned", "normal"),
}


@dataclass(frozen=True)
class Row:
    """What one process took. seconds: wall-clock time; worked: processor seconds; peak: bytes of memory"""

    name: str
    seconds: float
    worked: float
    peak: int


def timed(name: str, command: list[str]) -> Row:
    """Run a command. Exits with its last lines if it fails."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{name} failed:\n{said[-2000:]}")
    return Row(name, time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10)


def rows(args: argparse.Namespace, work: Path) -> list[Row]:
    """All rows that were asked for."""
    found = []
    text = ["--calibration", str(args.text)]
    size = ["--calibration-tokens", str(args.tokens), "--calibration-context", str(args.context)]
    threads = ["--threads", str(args.threads)] if args.threads else []
    ours = [sys.executable, "-m", "bitsmith"]
    for name in args.only or OURS:
        if name not in OURS:
            continue
        to, method, effort = OURS[name]
        how = ["--method", method, *(["--effort", effort] if effort else [])]
        out = ["--out", str(work / name.replace(" ", "-")), "--quiet"]
        found.append(timed(name, [*ours, "quantize", args.model, "--to", to, *how, *text, *size, *threads, *out]))
    if args.peer_python:
        folder = str(bitsmith.inspect(args.model).path)
        driver = [args.peer_python, str(PEERS / "llmcompressor_driver.py"), folder, str(work / "peer")]
        shape = ["--bits", "4", "--group-size", "128", "--method", "gptq"]
        texts = ["--calibration", str(args.text), "--tokens", str(args.tokens), "--context", str(args.context)]
        found.append(timed("llm-compressor GPTQ W4A16", [*driver, *shape, *texts]))
    if args.imatrix or args.llama_cpp:
        out = ["--out", str(work / "ours.gguf"), "--quiet"]
        found.append(timed("imatrix", [*ours, "imatrix", args.model, *text, *size, *threads, *out]))
    if args.llama_cpp:
        source, part = work / "bf16.gguf", work / "part.txt"
        bitsmith.quantize(args.model, to="bf16", out=source)
        part.write_text(args.text.read_text()[: int(args.tokens * args.characters)])
        command = [
            str(args.llama_cpp / "llama-imatrix"),
            "-m",
            str(source),
            "-f",
            str(part),
            "-o",
            str(work / "t.gguf"),
        ]
        chunks = str(args.tokens // args.context)
        command += ["-c", str(args.context), "-b", str(args.context), "--chunks", chunks, "--no-ppl"]
        number = str(args.threads or os.cpu_count())
        found.append(timed("llama-imatrix", [*command, "-t", number, "-tb", number]))
    return found


def main() -> None:
    """Time every row and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text to calibrate on")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--only", action="append", metavar="NAME", help=f"one of {', '.join(OURS)}, or none; repeatable"
    )
    parser.add_argument("--imatrix", action="store_true", help="time our imatrix too")
    parser.add_argument("--peer-python", metavar="PATH", help="a Python that has llmcompressor")
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="folder of llama-imatrix")
    parser.add_argument("--characters", type=float, default=5.0, help="of the text for each token (default: 5)")
    args = parser.parse_args()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "s", "CPU s", "peak MB"):
        table.add_column(heading, justify="right" if heading else "left")
    with tempfile.TemporaryDirectory() as work:
        for row in rows(args, Path(work)):
            table.add_row(row.name, f"{row.seconds:.1f}", f"{row.worked:.1f}", f"{row.peak >> 20}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
