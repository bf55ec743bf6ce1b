"""What bitsmith's files lose against llama-quantize's, mix by mix, in divergence from the original.

    python bench/quality.py --llama-cpp ~/llama.cpp/build/bin --text held-out.txt
    python bench/quality.py --llama-cpp DIR --text FILE --mix q4_k_m --mix q2_k --json

Both programs quantize the same BF16 GGUF file of the model (which bitsmith writes; exact for a BF16 checkpoint),
both without importance, and the same evaluator measures both against the checkpoint: `bitsmith eval FILE --against
MODEL --text FILE --json`. llama-quantize refuses q2_k_s without importance; its column is then empty.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MIXES = (
    *("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "iq4_nl", "iq4_xs"),
    *("q4_1", "q4_0", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "q2_k_s"),
)


@dataclass(frozen=True)
class Loss:
    """One file: bytes, mean KLD in nats a token with its standard error, share of tokens with the same top-1."""

    size: int
    kld: float
    kld_error: float
    top1: float
    top1_error: float


@dataclass(frozen=True)
class Row:
    """One mix; `theirs` is None where llama-quantize refuses it."""

    mix: str
    ours: Loss
    theirs: Loss | None

    @property
    def verdict(self) -> str:
        """Our KLD in per cent of theirs, and the difference in standard errors of a difference of two means.

        Both files are measured on the same tokens, so the real uncertainty of the difference is smaller.
        """
        if self.theirs is None:
            return ""
        spread = float((self.ours.kld_error**2 + self.theirs.kld_error**2) ** 0.5)
        difference = self.ours.kld - self.theirs.kld
        return f"{100 * difference / self.theirs.kld:+.1f} % ({difference / spread:+.1f} σ)"


def run(command: list[str]) -> str:
    """Standard output of a command; ends the program where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def bitsmith(*arguments: str) -> str:
    """Run bitsmith in a process of its own."""
    return run([sys.executable, "-m", "bitsmith", *arguments])


def llama_quantize(program: Path, source: Path, out: Path, mix: str) -> bool:
    """Make `out` with llama-quantize; False where it refuses."""
    done = subprocess.run([program, source, out, mix.upper(), "1"], capture_output=True, text=True)
    if done.returncode and "requires an i" not in done.stdout + done.stderr:
        raise SystemExit(f"{program} {source} {out} {mix}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.returncode == 0


def measure(file: Path, args: argparse.Namespace) -> Loss:
    """What the file lost against the original."""
    command = ["eval", str(file), "--against", args.model, "--context", str(args.context), "--json"]
    if args.text:
        command += ["--text", str(args.text)]
    if args.max_windows:
        command += ["--max-windows", str(args.max_windows)]
    if args.threads:
        command += ["--threads", str(args.threads)]
    found: dict[str, Any] = json.loads(bitsmith(*command))["divergence"]
    kld, top1 = found["kld"], found["top1"]
    return Loss(file.stat().st_size, kld["value"], kld["error"], top1["value"], top1["error"])


def compare(mix: str, source: Path, work: Path, args: argparse.Namespace) -> Row:
    """Make both files of one mix, measure both, delete both."""
    ours, theirs = work / "ours.gguf", work / "theirs.gguf"
    bitsmith("quantize", str(source), "--to", mix, "--out", str(ours), "--force")
    accepted = llama_quantize(args.llama_cpp / "llama-quantize", source, theirs, mix)
    row = Row(mix, measure(ours, args), measure(theirs, args) if accepted else None)
    for file in (ours, theirs):
        file.unlink(missing_ok=True)
    return row


def show(rows: list[Row]) -> None:
    """One table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ("mix", "bytes", "llama-quantize", "KLD", "llama-quantize", "difference", "top-1", "llama-quantize")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "mix" else "right", no_wrap=True)
    for row in rows:
        ours, theirs = row.ours, row.theirs
        table.add_row(
            row.mix,
            f"{ours.size:,}",
            f"{theirs.size:,}" if theirs else "",
            f"{ours.kld:.6f} ± {ours.kld_error:.6f}",
            f"{theirs.kld:.6f} ± {theirs.kld_error:.6f}" if theirs else "",
            row.verdict,
            f"{100 * ours.top1:.2f} ± {100 * ours.top1_error:.2f} %",
            f"{100 * theirs.top1:.2f} ± {100 * theirs.top1_error:.2f} %" if theirs else "",
        )
    Console(highlight=False, width=140).print(table)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True, metavar="DIR", help="folder of llama-quantize")
    parser.add_argument("--model", default="reference", help="the original (default: the built-in model)")
    parser.add_argument("--text", type=Path, help="UTF-8 text (default: bitsmith's built-in one)")
    parser.add_argument("--mix", action="append", help="repeatable; default: all")
    parser.add_argument("--context", type=int, default=256, help="tokens in a window (default: 256)")
    parser.add_argument("--max-windows", type=int, help="stop after this many windows")
    parser.add_argument("--threads", type=int, help="given on to bitsmith eval")
    parser.add_argument(
        "--source", default="bf16", choices=["f32", "f16", "bf16"], help="type both programs start from"
    )
    parser.add_argument("--work", type=Path, help="folder for the files (default: the system's temporary one)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser.parse_args()


def main() -> None:
    """Compare the mixes asked for."""
    args = parse_args()
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        source = work / "source.gguf"
        bitsmith("quantize", args.model, "--to", args.source, "--out", str(source))
        rows = [compare(mix, source, work, args) for mix in args.mix or MIXES]
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
