"""What bitsmith's calibrated files lose against llama.cpp's, llm-compressor's and AutoRound's, width by width.

    python bench/calibrated.py --llama-cpp DIR --peer-python venv-llmc/bin/python \\
        --autoround-python venv-ar/bin/python --calibration calibration.txt --text held-out.txt --results all.jsonl
    python bench/calibrated.py --calibration FILE --text FILE --only '^ours int4-g128' --results all.jsonl
    python bench/calibrated.py --list

A row is one file: who makes it, of what format, by which method. All are made from the same checkpoint and the same
calibration text, and measured by the same evaluator against it: `bitsmith eval FILE --against MODEL --text TEXT
--json`. Rows of one width compete: linears of the blocks in groups of 128 (64 at 2 bits), embedding and head kept,
scales of 16 bits; or GGUF files of the same mix. Ratios are to the best peer of the width.

bitsmith and the Python peers calibrate on --tokens tokens in windows of --context; llama-imatrix reads the whole
text in such windows, its time and memory are part of every row that uses the matrix. Peers live in environments of
their own (bench/peers/ says which versions); rows whose peer is not given are left out. Seconds and peak memory are
those of the whole process that makes the file. Wall time depends on what else the machine does, processor time less so.

Results are appended to --results as they come; a row that is there already, for the same texts and settings, is not
made again. A row that fails is shown with its error, not recorded, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MB = 1_000_000
PEERS = Path(__file__).resolve().parent / "peers"
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in the unit of ru_maxrss


@dataclass(frozen=True)
class Row:
    """One file to make.

    maker: ours, llama-quantize, llm-compressor or autoround
    width: what the row competes in, such as int4-g128 or gguf/q4_k_m
    target: the format, in the maker's words
    method: how codes are chosen, in the maker's words
    effort: given on to bitsmith; empty where the method says all
    calibrated: whether the maker is given the calibration text
    """

    maker: str
    width: str
    target: str
    method: str
    effort: str = ""
    calibrated: bool = True

    @property
    def label(self) -> str:
        """What --only is matched against, and what the table shows."""
        words = (self.maker, self.width, self.target if self.target != self.width else "", self.method, self.effort)
        return " ".join(word for word in (*words, "" if self.calibrated else "uncalibrated") if word)


INTEGERS = {  # width -> our targets, bits, group size, zero points
    "int4-g128": (("native/int4-g128", "gptq/int4"), 4, 128, False),
    "int3-g128": (("native/int3-g128",), 3, 128, False),
    "int2-g64-asym": (("native/int2-g64-asym",), 2, 64, True),
}
METHODS = ("nearest", "gptq", "awq", "awq+gptq", "learned", "awq+learned")
MIXES = ("q4_k_m", "q3_k_m", "q2_k", "iq4_xs", "q4_k_s", "q4_0")
FEW_BITS = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "iq3_s", "iq3_m")
MIX_METHODS = ("nearest", "gptq", "learned")
ROUNDED_INPUTS = ("w8a8", "w8a8-static", "fp8")  # ours alone: the peers' drivers do not make them

ROWS = (
    *(
        Row("ours", width, target, method, calibrated=calibrated)
        for width, (targets, *_) in INTEGERS.items()
        for target in targets
        for method, calibrated in (("nearest", False), *((method, True) for method in METHODS))
    ),
    *(
        Row("ours", f"gguf/{mix}", f"gguf/{mix}", method, calibrated=calibrated)
        for mix in MIXES
        for method, calibrated in (("nearest", False), *((method, True) for method in MIX_METHODS))
    ),
    *(
        Row("ours", width, target, "gptq", effort="fast")
        for width, (targets, *_) in INTEGERS.items()
        for target in targets
    ),
    *(Row("ours", f"gguf/{mix}", f"gguf/{mix}", "gptq", effort="fast") for mix in MIXES),
    *(Row("ours", f"gguf/{mix}", f"gguf/{mix}", "gptq") for mix in FEW_BITS),
    Row("ours", "int4-g128-asym", "awq/int4", "gptq"),
    *(
        Row("ours", name, f"compressed/{name}", method)
        for name in ROUNDED_INPUTS
        for method in ("nearest", "gptq", "smoothquant", "smoothquant+gptq")
    ),
    *(
        Row("llm-compressor", width, width, method, calibrated=method != "rtn")
        for width in INTEGERS
        for method in ("rtn", "gptq", "awq", "awq+gptq")
    ),
    *(Row("autoround", width, width, "signround") for width in INTEGERS),
    *(
        Row("llama-quantize", f"gguf/{mix}", f"gguf/{mix}", "imatrix" if calibrated else "plain", calibrated=calibrated)
        for mix in MIXES
        for calibrated in (False, True)
    ),
    *(Row("llama-quantize", f"gguf/{mix}", f"gguf/{mix}", "imatrix") for mix in FEW_BITS),
)


@dataclass(frozen=True)
class Cost:
    """Of a process: wall and processor seconds, peak memory in bytes."""

    seconds: float
    cpu_seconds: float
    peak_memory: int

    def then(self, other: Cost) -> Cost:
        """Of both processes, one after the other."""
        return Cost(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_memory, other.peak_memory),
        )


@dataclass(frozen=True)
class Made:
    """A finished file: where it is, bits per weight over all its weights, and what making it cost."""

    path: Path
    bits_per_weight: float
    cost: Cost


@dataclass(frozen=True)
class Loss:
    """On one text: mean KLD in nats a token and the share of tokens with the same top-1, with standard errors."""

    kld: float
    kld_error: float
    top1: float
    top1_error: float


@dataclass(frozen=True)
class Result:
    """One row, made and measured; `losses` by the text's name."""

    row: Row
    setup: str
    bits_per_weight: float
    cost: Cost
    losses: dict[str, Loss]

    @classmethod
    def from_json(cls, line: str) -> Result:
        """Read back what `asdict` wrote."""
        found: dict[str, Any] = json.loads(line)
        losses = {name: Loss(**loss) for name, loss in found["losses"].items()}
        row, cost = Row(**found["row"]), Cost(**found["cost"])
        return cls(row, found["setup"], found["bits_per_weight"], cost, losses)


class MakeError(Exception):
    """A program failed; the message is the command, the exit code and the end of what it printed."""


def run(command: list[str], work: Path) -> tuple[str, Cost]:
    """Standard output of a command, and its cost; raises MakeError where it fails.

    Peak memory is the kernel's ru_maxrss of the process and those it waited for; it counts from the fork, and so is
    never below this program's own memory (about 30 MB).
    """
    out, err = work / "stdout", work / "stderr"
    started = time.perf_counter()
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        tail = (out.read_text(errors="replace") + err.read_text(errors="replace"))[-1500:]
        raise MakeError(f"{' '.join(command)}\nexit code {process.returncode}\n{tail}")
    peak = usage.ru_maxrss * MAXRSS_UNIT
    return out.read_text(errors="replace"), Cost(seconds, usage.ru_utime + usage.ru_stime, peak)


def bitsmith(*arguments: str) -> list[str]:
    """A bitsmith command."""
    return [sys.executable, "-m", "bitsmith", *arguments]


class Bench:
    """Makes and measures rows in a work folder; the GGUF source and the importance matrix are made once."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self._args = args
        self._work = work
        self._source: Path | None = None
        self._imatrix: tuple[Path, Cost] | None = None

    def result(self, row: Row) -> Result:
        """Make one file, measure it on every text, delete it."""
        makers = {
            "ours": self._ours,
            "llama-quantize": self._llama_quantize,
            "llm-compressor": self._llm_compressor,
            "autoround": self._autoround,
        }
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            made = makers[row.maker](row, Path(folder) / "made")
            losses = {text.name: self._measure(made.path, text) for text in self._args.text}
        return Result(row, setup_of(self._args), made.bits_per_weight, made.cost, losses)

    def _run(self, command: list[str]) -> tuple[str, Cost]:
        return run(command, self._work)

    def _measure(self, path: Path, text: Path) -> Loss:
        args = self._args
        command = bitsmith("eval", str(path), "--against", args.model, "--text", str(text), "--json")
        command += ["--context", str(args.context)]
        if args.max_windows:
            command += ["--max-windows", str(args.max_windows)]
        if args.threads:
            command += ["--threads", str(args.threads)]
        found = json.loads(self._run(command)[0])["divergence"]
        kld, top1 = found["kld"], found["top1"]
        return Loss(kld["value"], kld["error"], top1["value"], top1["error"])

    def _bits_per_weight(self, path: Path) -> float:
        return float(json.loads(self._run(bitsmith("inspect", str(path), "--json"))[0])["bits_per_weight"])

    def _calibration(self) -> list[str]:
        args = self._args
        return ["--calibration", str(args.calibration), "--tokens", str(args.tokens), "--context", str(args.context)]

    def _ours(self, row: Row, out: Path) -> Made:
        if row.target.startswith("gguf/"):
            out = out.with_suffix(".gguf")
        command = bitsmith("quantize", self._args.model, "--to", row.target, "--method", row.method, "--out", str(out))
        if row.effort:
            command += ["--effort", row.effort]
        if row.calibrated:
            command += ["--calibration", str(self._args.calibration)]
            command += ["--calibration-tokens", str(self._args.tokens)]
            command += ["--calibration-context", str(self._args.context)]
        if self._args.threads:
            command += ["--threads", str(self._args.threads)]
        _, cost = self._run(command)
        return Made(out, self._bits_per_weight(out), cost)

    def _llama_quantize(self, row: Row, out: Path) -> Made:
        out, source, before = out.with_suffix(".gguf"), self._gguf_source(), Cost(0.0, 0.0, 0)
        command = [str(self._args.llama_cpp / "llama-quantize")]
        if row.calibrated:
            matrix, before = self._importance(source)
            command += ["--imatrix", str(matrix)]
        _, cost = self._run([*command, str(source), str(out), row.target.rpartition("/")[2].upper(), "1"])
        return Made(out, self._bits_per_weight(out), before.then(cost))

    def _gguf_source(self) -> Path:
        if self._source is None:
            source = self._work / "source.gguf"
            self._run(bitsmith("quantize", self._args.model, "--to", "bf16", "--out", str(source)))
            self._source = source
        return self._source

    def _importance(self, source: Path) -> tuple[Path, Cost]:
        if self._imatrix is None:
            matrix, context = self._work / "imatrix.gguf", str(self._args.context)
            command = [
                str(self._args.llama_cpp / "llama-imatrix"),
                "-m",
                str(source),
                "-f",
                str(self._args.calibration),
            ]
            command += ["-o", str(matrix), "-c", context, "-b", context, "-t", "1", "-tb", "1", "--no-ppl"]
            self._imatrix = matrix, self._run(command)[1]
        return self._imatrix

    def _integers(self, row: Row, out: Path) -> list[str]:
        _, bits, group_size, asym = INTEGERS[row.width]
        shape = ["--bits", str(bits), "--group-size", str(group_size), *(["--asym"] if asym else [])]
        return [str(self._hf_folder()), str(out), *shape, *self._calibration()]

    def _hf_folder(self) -> Path:
        """The model as peers read it; the built-in one is a folder of the package."""
        if self._args.model != "reference":
            return Path(self._args.model)
        found: dict[str, Any] = json.loads(self._run(bitsmith("inspect", "reference", "--json"))[0])
        return Path(found["path"])

    def _llm_compressor(self, row: Row, out: Path) -> Made:
        driver = [self._args.peer_python, str(PEERS / "llmcompressor_driver.py")]
        printed, cost = self._run([*driver, *self._integers(row, out), "--method", row.method])
        return Made(out, float(json.loads(printed.splitlines()[-1])["bits_per_weight"]), cost)

    def _autoround(self, row: Row, out: Path) -> Made:
        driver = [self._args.autoround_python, str(PEERS / "autoround_driver.py")]
        _, cost = self._run([*driver, *self._integers(row, out)])
        return Made(out, self._bits_per_weight(out), cost)


def setup_of(args: argparse.Namespace) -> str:
    """What a result depends on beside its row."""
    texts = [args.calibration, *args.text]
    hashes = [f"{text.name}:{hashlib.sha256(text.read_bytes()).hexdigest()[:12]}" for text in texts]
    return f"{args.model} {args.tokens} tokens, windows of {args.context}, {args.max_windows or 'all'}: " + " ".join(
        hashes
    )


def wanted(args: argparse.Namespace) -> list[Row]:
    """The rows that --only names and whose program is given."""
    given = {
        "ours": True,
        "llama-quantize": args.llama_cpp is not None,
        "llm-compressor": args.peer_python is not None,
        "autoround": args.autoround_python is not None,
    }
    rows = [
        replace(row, effort=row.effort or args.effort or "") if row.maker == "ours" and row.calibrated else row
        for row in ROWS
    ]
    return [row for row in rows if re.search(args.only, row.label) and (args.list or given[row.maker])]


def read_results(path: Path | None) -> list[Result]:
    """What earlier runs recorded."""
    if path is None or not path.exists():
        return []
    return [Result.from_json(line) for line in path.read_text().splitlines()]


def best_peers(results: list[Result]) -> dict[tuple[str, str], float]:
    """The least KLD of any peer, by width and text."""
    best: dict[tuple[str, str], float] = {}
    for result in results:
        if result.row.maker == "ours":
            continue
        for text, loss in result.losses.items():
            key = result.row.width, text
            best[key] = min(loss.kld, best.get(key, loss.kld))
    return best


def cells(result: Result, texts: list[str], best: dict[tuple[str, str], float]) -> Iterator[str]:
    """One line of the table."""
    row, cost = result.row, result.cost
    yield from (row.width, row.maker, row.target if row.target != row.width else "")
    yield f"{row.method} {row.effort}".strip() + ("" if row.calibrated else " (uncalibrated)")
    yield f"{result.bits_per_weight:.3f}"
    for text in texts:
        loss, peer = result.losses[text], best.get((row.width, text))
        yield f"{loss.kld:.6f} ± {loss.kld_error:.6f}"
        yield f"{loss.kld / peer:.3f}" if peer else ""
    yield from (f"{cost.seconds:.1f}", f"{cost.cpu_seconds:.1f}", f"{cost.peak_memory / MB:.0f}")


def show(results: list[Result], texts: list[str], best: dict[tuple[str, str], float]) -> None:
    """One table, widths together, best first; `best` as `best_peers` gives it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ["width", "maker", "target", "method", "bits/weight"]
    headings += [heading for text in texts for heading in (f"KLD {text}", "ratio")]
    for index, heading in enumerate([*headings, "s", "CPU s", "MB"]):
        table.add_column(heading, justify="left" if index < 4 else "right", no_wrap=True)
    widths = list(dict.fromkeys(row.width for row in ROWS))
    for result in sorted(results, key=lambda each: (widths.index(each.row.width), each.losses[texts[0]].kld)):
        table.add_row(*cells(result, texts, best))
    Console(highlight=False, width=100 + 36 * len(texts)).print(table)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="folder of llama-quantize and llama-imatrix")
    parser.add_argument("--peer-python", metavar="PATH", help="a Python that has llmcompressor")
    parser.add_argument("--autoround-python", metavar="PATH", help="a Python that has auto_round")
    parser.add_argument("--model", default="reference", help="the original (default: the built-in model)")
    parser.add_argument("--calibration", type=Path, help="UTF-8 text all calibrate on")
    parser.add_argument("--tokens", type=int, default=65536, help="to calibrate on (default: 65536)")
    parser.add_argument("--text", type=Path, action="append", help="UTF-8 text to measure on; repeatable")
    parser.add_argument("--context", type=int, default=256, help="tokens in a window, both ways (default: 256)")
    parser.add_argument("--max-windows", type=int, help="measure on this many windows of each text")
    parser.add_argument("--effort", help="given on to bitsmith with every calibrated row")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose label it is found in, see --list")
    parser.add_argument("--threads", type=int, help="given on to bitsmith")
    parser.add_argument("--results", type=Path, metavar="FILE", help="JSON lines; read first, appended to")
    parser.add_argument("--work", type=Path, help="folder for the files (default: the system's temporary one)")
    parser.add_argument("--list", action="store_true", help="print the rows' labels and stop")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args()
    if not args.list and not (args.calibration and args.text):
        parser.error("--calibration and --text are needed")
    return args


def main() -> None:
    """Make and measure the rows asked for that are not recorded yet; show them all."""
    args = parse_args()
    rows = wanted(args)
    if args.list:
        print("\n".join(row.label for row in rows))
        return
    setup, failed = setup_of(args), 0
    recorded = [each for each in read_results(args.results) if each.setup == setup]
    results = [each for each in recorded if each.row in rows]
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        bench, done = Bench(args, Path(folder)), {result.row for result in results}
        for row in (row for row in rows if row not in done):
            print(row.label, file=sys.stderr, flush=True)
            try:
                result = bench.result(row)
            except MakeError as error:
                print(error, file=sys.stderr)
                failed += 1
                continue
            results.append(result)
            if args.results:
                with args.results.open("a") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
    if args.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    elif results:
        show(results, [text.name for text in args.text], best_peers(recorded + results))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
