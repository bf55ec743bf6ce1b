"""What training of a whole quantized model gains over rounding it, format by format.

    python bench/trained.py MODEL --calibration FILE --text FILE --results rows.jsonl [--formats int2-g64 q4_0]
    python bench/trained.py MODEL ... --torchao-python PATH --autoround-python PATH

A row is one file: nearest codes, GPTQ, learned rounding, `tune qat --train scales` and `all`; where a Python that has
them is given, also AutoRound, and torchao's quantization-aware training of the same format with the same teacher, text,
steps and batch. All are made in processes of their own, from one checkpoint and one text, with one seed, and measured
by `bitsmith eval --against MODEL` on a text that none of them saw. Seconds and peak memory are those of the process
that makes the file; processor seconds depend less on what else the machine does. Rows that --results holds are not
made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FORMATS = ("int4-g64", "int3-g64", "int2-g64", "q4_0", "q2_k")
METHODS = ("nearest", "gptq", "learned", "autoround", "scales", "all", "torchao")
PEERS = Path(__file__).resolve().parent / "peers"


def main() -> None:
    """Make and measure the rows, and print them as a table."""
    args = _arguments()
    done = {(row["format"], row["method"]) for row in _read(args.results)}
    for format in args.formats:
        for method in args.methods:
            if (format, method) in done or not _possible(args, format, method):
                continue
            row = _row(args, format, method)
            with args.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    _print(_read(args.results))


def _row(args: argparse.Namespace, format: str, method: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / ("out.gguf" if "int" not in format else "out")
        seconds, processor, peak = _run(_command(args, format, method, out))
        said = _measured(args, out)
    kld = said["divergence"]["kld"]
    return {
        "format": format,
        "method": method,
        "kld": kld["value"],
        "error": kld["error"],
        "perplexity": said["perplexity"]["value"],
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "peak_memory": peak,
        "settings": f"{args.tokens} tokens of {args.context}, steps {args.scale_steps}/{args.steps} of {args.batch}",
    }


def _command(args: argparse.Namespace, format: str, method: str, out: Path) -> list[str]:
    to = format if "int" not in format else f"native/{format}"
    own = [sys.executable, "-m", "bitsmith"]
    text = ["--calibration", str(args.calibration), "--calibration-tokens", str(args.tokens)]
    text += ["--calibration-context", str(args.context), "--threads", str(args.threads), "--seed", str(args.seed)]
    end = ["--to", to, "--out", str(out), "--quiet", *text]
    steps = str(args.scale_steps if method == "scales" else args.steps)
    trained = ["--train", method, "--steps", steps, "--batch", str(args.batch)]
    trained += ["--training-tokens", str(args.training_tokens)]
    if method == "torchao":
        width, group = format.removeprefix("int").split("-g")
        driver = [
            args.torchao_python,
            str(PEERS / "torchao_driver.py"),
            str(args.model),
            str(out),
            str(args.calibration),
        ]
        driver += ["--bits", width, "--group", group, "--steps", str(args.steps), "--batch", str(args.batch)]
        return [*driver, "--context", str(args.context), "--threads", str(args.threads), "--seed", str(args.seed)]
    if method == "autoround":
        width, group = format.removeprefix("int").split("-g")
        driver = [args.autoround_python, str(PEERS / "autoround_driver.py"), str(args.model), str(out)]
        driver += ["--bits", width, "--group-size", group, "--calibration", str(args.calibration)]
        return [*driver, "--tokens", str(args.tokens), "--context", str(args.context)]
    if method in ("scales", "all"):
        return [*own, "tune", "qat", str(args.model), *end, *trained, "--method", args.start]
    return [*own, "quantize", str(args.model), *end, "--method", method]


def _measured(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "bitsmith",
        "eval",
        str(out),
        "--against",
        str(args.model),
        "--text",
        str(args.text),
    ]
    command += ["--context", str(args.context), "--max-windows", str(args.windows), "--threads", str(args.threads)]
    found = subprocess.run([*command, "--json", "--quiet"], capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{' '.join(command)}\n{found.stderr}")
    said: dict[str, Any] = json.loads(found.stdout)
    return said


def _run(command: list[str]) -> tuple[float, float, int]:
    """Wall seconds, processor seconds and peak memory in bytes of a command."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}\nexit code {process.returncode}\n{said.read()[-2000:]}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _possible(args: argparse.Namespace, format: str, method: str) -> bool:
    peer = {"torchao": args.torchao_python, "autoround": args.autoround_python}
    return method not in peer or (peer[method] is not None and format.startswith("int"))


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _print(rows: list[dict[str, Any]]) -> None:
    print(
        "| format | method | mean KLD | of learned | perplexity | CPU s | peak memory |\n|---|---|---|---|---|---|---|"
    )
    learned = {row["format"]: row["kld"] for row in rows if row["method"] == "learned"}
    for row in sorted(rows, key=lambda each: (FORMATS.index(each["format"]), METHODS.index(each["method"]))):
        share = f"{row['kld'] / learned[row['format']]:.2f}" if row["format"] in learned else ""
        print(
            f"| {row['format']} | {row['method']} | {row['kld']:.5f} ± {row['error']:.5f} | {share} | "
            f"{row['perplexity']:.2f} | {row['processor_seconds']:.0f} | {row['peak_memory'] / 1e6:.0f} MB |"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help='a Hugging Face folder, or "reference"')
    parser.add_argument("--calibration", type=Path, required=True, help="a text to calibrate and train on")
    parser.add_argument("--text", type=Path, required=True, help="another text, to measure on")
    parser.add_argument("--results", type=Path, required=True, help="rows that are done, a line each")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--start", default="learned", help="rounder before training")
    parser.add_argument("--torchao-python", metavar="PATH", help="a Python that has torchao and transformers")
    parser.add_argument("--autoround-python", metavar="PATH", help="a Python that has auto_round")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--training-tokens", type=int, default=1310720)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--scale-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
