"""Processor time and loss of calibrated methods, beside llm-compressor's GPTQ, AutoRound and llama-imatrix.

    python bench/calibration_speed.py --model reference --text calibration.txt --tokens 65536 --context 256 \
        --peer-python PYTHON --autoround-python PYTHON --llama-cpp DIR --held-out heldout.txt --results rows.jsonl

All calibrate on windows of the same text. Every row is a process of its own; seconds are those of the processor, of all
its threads. With --held-out, `bitsmith eval` measures each file against the original on a text that calibration never
saw. With several seeds, each tool draws other windows of the text for each. llama-imatrix gets the model as a BF16 GGUF
file, and a beginning of the text that has about as many tokens as ours. Rows that --results holds are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import bitsmith

PEERS = Path(__file__).parent / "peers"
OURS = {  # target, method, effort
    "nearest": ("native/int{bits}-g{group}", "nearest", ""),
    "gptq fast": ("native/int{bits}-g{group}", "gptq", "fast"),
    "gptq normal": ("native/int{bits}-g{group}", "gptq", "normal"),
    "awq": ("native/int{bits}-g{group}", "awq", ""),
    "awq+gptq": ("native/int{bits}-g{group}", "awq+gptq", "normal"),
    "learned": ("native/int{bits}-g{group}", "learned", "normal"),
    "learned high": ("native/int{bits}-g{group}", "learned", "high"),
    "learned fast": ("native/int{bits}-g{group}", "learned", "fast"),
    "awq+learned": ("native/int{bits}-g{group}", "awq+learned", "normal"),
    "w8a8 nearest": ("compressed/w8a8", "nearest", ""),
    "w8a8 gptq": ("compressed/w8a8", "gptq", "normal"),
    "w8a8 smoothquant": ("compressed/w8a8", "smoothquant", ""),
    "w8a8 smoothquant+gptq": ("compressed/w8a8", "smoothquant+gptq", "normal"),
    "q4_k_m gptq": ("q4_k_m", "gptq", "normal"),
    "q2_k learned": ("q2_k", "learned", "normal"),
    "q2_k_s gptq": ("q2_k_s", "gptq", "normal"),
    "q2_k_s learned": ("q2_k_s", "learned", "normal"),
}
USUAL = ("gptq fast", "gptq normal", "awq", "w8a8 smoothquant", "learned")


@dataclass(frozen=True)
class Row:
    """What one process took, and what its file loses.

    seconds: wall-clock time; worked: processor seconds; peak: bytes of memory; kld, error: mean and standard error, in
    nats; None where nothing was measured
    """

    name: str
    seed: int
    seconds: float
    worked: float
    peak: int
    kld: float | None = None
    error: float | None = None


class Bench:
    """Makes rows with one set of arguments, in a folder for what they write."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.folder = Path(bitsmith.inspect(args.model).path)

    def rows(self, seed: int, done: set[tuple[str, int]]) -> None:
        """Make the rows of one seed that are not done."""
        args = self.args
        for name in args.only or ([] if args.none else USUAL):
            if (name, seed) not in done:
                self._ours(name, seed)
        if args.peer_python and ("llm-compressor gptq", seed) not in done:
            self._peer("llm-compressor gptq", args.peer_python, "llmcompressor_driver.py", ["--method", "gptq"], seed)
        name = f"autoround {args.autoround_gguf or ''}".strip()
        if args.autoround_python and (name, seed) not in done:
            steps = ["--iterations", str(args.iterations)]
            steps += ["--gguf", args.autoround_gguf] if args.autoround_gguf else []
            steps += ["--blocks", str(args.blocks)] if args.blocks else []
            self._peer(name, args.autoround_python, "autoround_driver.py", steps, seed)
        if (args.imatrix or args.llama_cpp) and ("imatrix", seed) not in done:
            out = self.work / "ours.gguf"
            command = [*self._bitsmith("imatrix"), *self._size(seed), *self._threads(), "--out", str(out), "--quiet"]
            self._add(self._timed("imatrix", seed, command), None)
        if args.llama_cpp and ("llama-imatrix", seed) not in done:
            self._llama_imatrix(seed)

    def _bitsmith(self, command: str) -> list[str]:
        text = ["--calibration", str(self.args.text)]
        return [sys.executable, "-m", "bitsmith", command, self.args.model, *text]

    def _size(self, seed: int) -> list[str]:
        size = ["--calibration-tokens", str(self.args.tokens), "--calibration-context", str(self.args.context)]
        return [*size, "--seed", str(seed)]

    def _threads(self) -> list[str]:
        return ["--threads", str(self.args.threads)] if self.args.threads else []

    def _others(self) -> list[str]:
        """A rule that leaves the blocks behind the first ones as they are, if that is wanted."""
        if not self.args.blocks:
            return []
        layers = json.loads((self.folder / "config.json").read_text())["num_hidden_layers"]
        left = "|".join(map(str, range(self.args.blocks, layers)))
        return ["--rule", rf"layers\.({left})\.=bf16"]

    def _ours(self, name: str, seed: int) -> None:
        to, method, effort = OURS[name]
        to = to.format(bits=self.args.bits, group=self.args.group_size)
        how = ["--method", method, *(["--effort", effort] if effort else [])]
        out = self.work / f"{name.replace(' ', '-')}-{seed}{'' if '/' in to else '.gguf'}"
        end = [*self._others(), *self._threads(), "--out", str(out), "--quiet"]
        command = [*self._bitsmith("quantize"), "--to", to, *how, *self._size(seed), *end]
        self._add(self._timed(name, seed, command), out)

    def _peer(self, name: str, python: str, driver: str, how: list[str], seed: int) -> None:
        args = self.args
        out = self.work / f"{name.replace(' ', '-')}-{seed}{'.gguf' if '--gguf' in how else ''}"
        shape = ["--bits", str(args.bits), "--group-size", str(args.group_size), *how]
        texts = ["--calibration", str(args.text), "--tokens", str(args.tokens), "--context", str(args.context)]
        command = [python, str(PEERS / driver), str(self.folder), str(out), *shape, *texts, "--seed", str(seed)]
        self._add(self._timed(name, seed, command), out)

    def _llama_imatrix(self, seed: int) -> None:
        args, source, part = self.args, self.work / "bf16.gguf", self.work / "part.txt"
        bitsmith.quantize(args.model, to="bf16", out=source)
        part.write_text(args.text.read_text()[: int(args.tokens * args.characters)])
        files = ["-m", str(source), "-f", str(part), "-o", str(self.work / "theirs.gguf")]
        size = ["-c", str(args.context), "-b", str(args.context), "--chunks", str(args.tokens // args.context)]
        number = str(args.threads or os.cpu_count())
        command = [str(args.llama_cpp / "llama-imatrix"), *files, *size, "--no-ppl", "-t", number, "-tb", number]
        self._add(self._timed("llama-imatrix", seed, command), None)

    def _timed(self, name: str, seed: int, command: list[str]) -> Row:
        """Run a command. Exits with its last lines if it fails."""
        said, started = self.work / "said.txt", time.monotonic()
        variables = os.environ | ({"OMP_NUM_THREADS": str(self.args.threads)} if self.args.threads else {})
        with said.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=variables)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{name} failed:\n{said.read_text()[-2000:]}")
        return Row(name, seed, time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10)

    def _add(self, row: Row, out: Path | None) -> None:
        """Measure the file of a row, if that is wanted, and keep the row."""
        args = self.args
        if args.held_out and out is not None:
            command = [sys.executable, "-m", "bitsmith", "eval", str(out), "--against", args.model, *self._threads()]
            command += ["--text", str(args.held_out), "--context", str(args.context), "--json", "--quiet"]
            command += ["--max-windows", str(args.windows)]
            found = subprocess.run(command, capture_output=True, text=True, check=False)
            if found.returncode:
                sys.exit(f"eval of {row.name} failed:\n{found.stderr[-2000:]}")
            kld = json.loads(found.stdout)["divergence"]["kld"]
            row = Row(**asdict(row) | {"kld": kld["value"], "error": kld["error"]})
        print(json.dumps(asdict(row)), flush=True)
        if args.results:
            with args.results.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        ROWS.append(row)


ROWS: list[Row] = []


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text to calibrate on")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", action="append", choices=list(OURS), metavar="NAME", help=", ".join(OURS))
    parser.add_argument("--none", action="store_true", help="none of our methods")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="draws of the calibration's windows")
    parser.add_argument("--imatrix", action="store_true", help="time our imatrix too")
    parser.add_argument("--peer-python", metavar="PATH", help="a Python that has llmcompressor")
    parser.add_argument("--autoround-python", metavar="PATH", help="a Python that has auto-round")
    parser.add_argument("--autoround-gguf", metavar="MIX", help="AutoRound writes a GGUF file: q2_k_s ...")
    parser.add_argument("--iterations", type=int, default=200, help="of AutoRound, for each block")
    parser.add_argument("--blocks", type=int, help="round the first blocks alone, by ours and AutoRound")
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="folder of llama-imatrix")
    parser.add_argument("--characters", type=float, default=5.0, help="of the text for each token (default: 5)")
    parser.add_argument("--held-out", type=Path, help="UTF-8 text on which files are measured")
    parser.add_argument("--windows", type=int, default=60, help="of that text")
    parser.add_argument("--results", type=Path, metavar="FILE.jsonl")
    return parser.parse_args()


def main() -> None:
    """Make every row and print them."""
    args = arguments()
    if args.results and args.results.exists():
        ROWS.extend(Row(**json.loads(line)) for line in args.results.read_text().splitlines())
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(args, Path(work))
        for seed in args.seeds:
            bench.rows(seed, {(row.name, row.seed) for row in ROWS})
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "seed", "s", "CPU s", "peak MB", "mean KLD"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in ROWS:
        kld = "" if row.kld is None else f"{row.kld:.5f} ± {row.error:.5f}"
        table.add_row(row.name, str(row.seed), f"{row.seconds:.1f}", f"{row.worked:.1f}", f"{row.peak >> 20}", kld)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
