"""How fast bitsmith is beside llama.cpp's own programs: quantizing, running, starting.

    python bench/speed.py --llama-bin ~/llama.cpp/build/bin --work DIR
    python bench/speed.py --llama-bin DIR --model F16.gguf --type q4_k_m --part quantize --rounds 5 --threads 1
    python bench/speed.py --llama-bin DIR --file model-Q4_K_M.gguf --part run --part start --json
    python bench/speed.py --llama-bin DIR --ik-bin ~/ik_llama.cpp/build/bin --part run --type q8_0 --type f16

The programs do the same work on the same file, in turns, so that what else the machine does hits all of them:

quantize  `bitsmith quantize F16.gguf --to TYPE` and `llama-quantize F16.gguf TYPE`, the whole process: wall and
          processor seconds, peak memory. bitsmith also flushes its file to disk and reads it back, which
          llama-quantize does not: those seconds, of both kinds, stand apart and are not in the others. Peak memory
          counts pages of files that are mapped, as llama-quantize maps its source, and is never below this program's
          own (45 MB).
run       `bitsmith bench FILE --kernel int8` and `llama-bench -m FILE`: tokens a second, of a prompt and of generation.
          All then round the inputs of a prompt's products; `bitsmith run` takes int16 unless told otherwise. With
          --ik-bin ik_llama.cpp's llama-bench takes its turn, too. Beside it: the share of the memory's bandwidth that
          bitsmith's generation uses.
start     from the start of the process to the first token and the end, the file in the page cache: `bitsmith run FILE
          -n 1` and `llama-completion -m FILE -n 1 --no-warmup`.

Without --model a Llama of 0.85 billion random weights is made in --work (3.5 GB) and kept there, with the files made
from it; with --experts a mixture of 64 experts of 1.1 billion, of which a token uses 8. The table shows the median of
the rounds with the lowest and the highest, and the ratio of the medians, ours by the better peer's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from calibrated import Cost, MakeError, bitsmith, run
from rich.console import Console
from rich.table import Table
from shapes import ExpertShape, Shape, write_checkpoint

MB = 1_000_000
SHAPE = Shape(layers=16, hidden=2048, intermediate=5632, vocab=32000, heads=32, kv_heads=8)
EXPERTS = ExpertShape(10, 1024, 512, 32000, 16, 4, experts=64, used=8)
TYPES = ("q8_0", "q6_k", "q4_k_m", "q2_k", "q4_0")
PARTS = ("quantize", "run", "start")
LLAMA, IK = "llama.cpp", "ik_llama.cpp"
PROMPT = "It was a dark evening in November, and the old house"


@dataclass
class Row:
    """One figure of one file, ours and the peers', round by round; peers may be missing.

    smaller_is_better: of seconds and bytes; not of speeds
    """

    part: str
    file: str
    what: str
    unit: str
    smaller_is_better: bool = True
    ours: list[float] = field(default_factory=list)
    peers: dict[str, list[float]] = field(default_factory=lambda: {LLAMA: [], IK: []})

    @property
    def ratio(self) -> float | None:
        """Ours by the better peer's, of the medians; None without a counterpart."""
        medians = [statistics.median(values) for values in self.peers.values() if values]
        if not medians:
            return None
        return statistics.median(self.ours) / (min(medians) if self.smaller_is_better else max(medians))

    def cells(self) -> tuple[str, ...]:
        """One line of the table."""
        better = None if self.ratio is None else (self.ratio < 1) == self.smaller_is_better
        ratio = "" if self.ratio is None else f"{self.ratio:.3f}"
        verdict = "" if better is None else "ours" if better else "theirs"
        peers = [spread(self.peers[name]) for name in (LLAMA, IK)]
        return self.part, self.file, self.what, self.unit, spread(self.ours), *peers, ratio, verdict


def spread(values: list[float]) -> str:
    """The median, the lowest and the highest."""
    if not values:
        return ""
    return f"{statistics.median(values):,.2f} ({min(values):,.2f}-{max(values):,.2f})"


def in_turns(rounds: int, *steps: Callable[[], None]) -> None:
    """All, so many times, taking turns at being first."""
    for turn in range(rounds):
        for i in range(len(steps)):
            steps[(turn + i) % len(steps)]()


class Bench:
    """Makes the files and measures them, in a work folder."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self._args, self._work = args, work
        self._threads = str(args.threads)

    def rows(self) -> Iterable[Row]:
        """All that was asked for; one file after another."""
        args = self._args
        for type_ in args.type if "quantize" in args.part else ():
            yield from self._quantize(type_)
        for file in args.file or [self._made(type_) for type_ in args.type if {"run", "start"} & {*args.part}]:
            warm(file)
            if "run" in args.part:
                yield from self._run(file)
            if "start" in args.part:
                yield self._start(file)

    def _theirs(self, program: str, *words: str, peer: str = LLAMA) -> tuple[str, Cost]:
        folder = self._args.llama_bin if peer == LLAMA else self._args.ik_bin
        return run([str(folder / program), *words], self._work)

    def _source(self) -> Path:
        """The F16 file that both quantize."""
        if self._args.model:
            return Path(self._args.model)
        name, shape = ("experts", EXPERTS) if self._args.experts else ("synthetic", SHAPE)
        source, folder = self._work / f"{name}-F16.gguf", self._work / name
        if not source.exists():
            shutil.rmtree(folder, ignore_errors=True)
            write_checkpoint(shape, folder, seed=0)
            run(bitsmith("quantize", str(folder), "--to", "f16", "--out", str(source)), self._work)
            shutil.rmtree(folder)
        return source

    def _made(self, type_: str) -> Path:
        """Our file of that type, made where it is not there yet."""
        source = self._source()
        if type_.lower() == "f16":
            return source
        made = self._work / f"{source.stem}-{type_.upper()}.gguf"
        if not made.exists():
            run(bitsmith("quantize", str(source), "--to", type_, "--out", str(made)), self._work)
        return made

    def _quantize(self, type_: str) -> list[Row]:
        source = self._source()
        ours, theirs = self._work / f"{source.stem}-{type_.upper()}.gguf", self._work / "theirs.gguf"
        units = {"processor": "s", "wall": "s", "peak memory": "MB"}
        rows = {what: Row("quantize", type_, what, unit) for what, unit in units.items()}
        apart = {what: Row("quantize", type_, f"{what}: flush, read back", "s") for what in ("processor", "wall")}
        warm(source)

        def add(ours: bool, cpu: float, wall: float, peak: float) -> None:
            for row, figure in zip(rows.values(), (cpu, wall, peak / MB), strict=True):
                (row.ours if ours else row.peers[LLAMA]).append(figure)

        def make_ours() -> None:
            words = ("--out", str(ours), "--force", "--json", "--threads", self._threads)
            printed, cost = run(bitsmith("quantize", str(source), "--to", type_, *words), self._work)
            found = json.loads(printed)
            cpu, wall = float(found["verify_cpu_seconds"]), float(found["verify_seconds"])
            add(True, cost.cpu_seconds - cpu, cost.seconds - wall, cost.peak_memory)
            apart["processor"].ours.append(cpu)
            apart["wall"].ours.append(wall)

        def make_theirs() -> None:
            words = (str(source), str(theirs), type_.upper(), self._threads)
            cost = self._theirs("llama-quantize", *words)[1]
            add(False, cost.cpu_seconds, cost.seconds, cost.peak_memory)
            theirs.unlink()

        in_turns(self._args.rounds, make_ours, make_theirs)
        return [*rows.values(), *apart.values()]

    def _run(self, file: Path) -> list[Row]:
        args = self._args
        prompt = Row("run", file.name, f"prompt of {args.prompt}", "tokens/s", smaller_is_better=False)
        gen = Row("run", file.name, f"generation of {args.gen}", "tokens/s", smaller_is_better=False)
        share = Row("run", file.name, "generation", "of bandwidth", smaller_is_better=False)
        peak = Row("run", file.name, "peak memory", "MB")

        def ours() -> None:
            words = ("--prompt", str(args.prompt), "--gen", str(args.gen), "--repeat", str(args.repeat))
            command = bitsmith("bench", str(file), *words, "--kernel", "int8", "--threads", self._threads, "--json")
            printed, _ = run(command, self._work)
            found: dict[str, Any] = json.loads(printed)
            for row, name in ((prompt, "prompt"), (gen, "generation")):
                row.ours += [found[name]["tokens"] / seconds for seconds in found[name]["seconds"]]
            peak.ours.append(found["peak_memory_bytes"] / MB)
            share.ours.append(found["bandwidth_share"])

        def theirs(peer: str) -> None:
            words = ("-p", str(args.prompt), "-n", str(args.gen), "-r", str(args.repeat), "-t", self._threads)
            printed, cost = self._theirs("llama-bench", "-m", str(file), *words, "-o", "json", peer=peer)
            for found in json.loads(printed[printed.index("[") :]):
                (prompt if found["n_prompt"] else gen).peers[peer].extend(found["samples_ts"])
            peak.peers[peer].append(cost.peak_memory / MB)

        peers = [LLAMA, IK] if args.ik_bin else [LLAMA]
        in_turns(args.rounds, ours, *(partial(theirs, peer) for peer in peers))
        return [prompt, gen, share, peak]

    def _start(self, file: Path) -> Row:
        row = Row("start", file.name, "to the first token", "s")
        same = ("-p", PROMPT, "-n", "1")

        def ours() -> None:
            words = (*same, "--temperature", "0", "--threads", self._threads)
            row.ours.append(run(bitsmith("run", str(file), *words), self._work)[1].seconds)

        def theirs() -> None:
            words = (*same, "--temp", "0", "-t", self._threads, "-no-cnv", "--no-display-prompt", "--no-warmup")
            row.peers[LLAMA].append(self._theirs("llama-completion", "-m", str(file), *words)[1].seconds)

        ours()  # Python's own files into the page cache
        row.ours.clear()
        in_turns(max(self._args.rounds, 5), ours, theirs)
        return row


def warm(file: Path) -> None:
    """Read a file once, so that it is in the page cache."""
    with file.open("rb", buffering=0) as opened:
        buffer = bytearray(8 * MB)
        while opened.readinto(buffer):
            pass


def show(rows: list[Row], threads: int) -> None:
    """One table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "file", "", "unit", "bitsmith", LLAMA, IK, "ratio", "better"):
        table.add_column(heading, justify="right" if heading in ("bitsmith", LLAMA, IK, "ratio") else "left")
    for row in rows:
        table.add_row(*row.cells())
    console = Console(highlight=False, width=170)
    console.print(table)
    console.print(f"{threads} thread{'' if threads == 1 else 's'}; median (lowest-highest)")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bin", type=Path, required=True, metavar="DIR", help="folder of llama.cpp's programs")
    parser.add_argument(
        "--ik-bin", type=Path, metavar="DIR", help="folder of ik_llama.cpp's programs, for the part run"
    )
    parser.add_argument("--model", help="F16 GGUF to quantize (default: a synthetic one, made in --work)")
    parser.add_argument("--experts", action="store_true", help="the synthetic model is a mixture of experts")
    parser.add_argument("--type", action="append", help=f"repeatable; default: {', '.join(TYPES)}")
    parser.add_argument("--file", action="append", type=Path, help="run and start this file; default: those of --type")
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; default: all")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of both programs")
    parser.add_argument("--rounds", type=int, default=3, help="times each program is started (start: 5 at least)")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of a round of the part run")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=128)
    parser.add_argument("--work", type=Path, help="folder for what is made, kept (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print every round's figures as JSON")
    args = parser.parse_args()
    args.type, args.part = args.type or list(TYPES), args.part or list(PARTS)
    return args


def main() -> None:
    """Measure what is asked for."""
    args = parse_args()
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work) as temporary:
        rows = []
        try:
            for row in Bench(args, args.work or Path(temporary)).rows():
                rows.append(row)
                if not args.json:
                    print(" ".join(row.cells()), file=sys.stderr, flush=True)
        except MakeError as error:
            raise SystemExit(str(error)) from error
    if args.json:
        print(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=2))
    else:
        show(rows, args.threads)


if __name__ == "__main__":
    main()
