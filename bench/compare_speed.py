"""The time of a comparison of ten files beside the same with llama-quantize and llama-perplexity, and both's figures.

    python bench/compare_speed.py MODEL.gguf --llama BIN --text FILE [--windows 8] [--work FOLDER] [--part PART ...]

MODEL.gguf is the original, in F32, F16 or BF16, for both. BIN is the folder of llama.cpp's programs. Both make the same
files, run the original once, and run every file over the same windows. llama-perplexity reads the files that bitsmith
made, so that the figures are of the same bytes; llama-quantize's have the same types and sizes.

Parts, so that a machine need not be quiet for all of it at once: "ours", "floor" (what the noise floor adds), "llama"
(goes on with the files that are missing), "values" (llama-perplexity on the same values in F32, where it rounds no
inputs; the original in F32 too), "table". Each leaves its times in FOLDER; nothing comes from another cache.
Processor seconds are counted too: with one thread they say what a busy machine hides.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bitsmith.system.core import core

FORMATS = ("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m", "q3_k_s", "q2_k")
PARTS = ("ours", "floor", "llama", "values", "table")
_FIGURES = {"perplexity": r"Mean PPL\(Q\)\s*:\s*([\d.]+)", "kld": r"Mean\s+KLD:\s*(-?[\d.]+)"}
Times = list[float]  # seconds of the clock, seconds of the processors


def main() -> None:
    """The parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama", type=Path, required=True, help="folder of llama-quantize and llama-perplexity")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("compare-speed"))
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--kernel", default="exact", help="kernel of bitsmith")
    parser.add_argument("--to", default=",".join(FORMATS), help="files to make; with llama, those to measure now")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for part in arguments.part or PARTS:
        if part == "table":
            print_table(arguments)
        else:
            {"ours": ours, "floor": floor, "llama": llama, "values": values}[part](arguments)


def kept(arguments: argparse.Namespace, part: str) -> dict[str, Any]:
    """What a part left in the folder."""
    path = arguments.work / f"{part}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"times": {}}
    return found


def keep(arguments: argparse.Namespace, part: str, found: dict[str, Any]) -> None:
    """Leave it there."""
    (arguments.work / f"{part}.json").write_text(json.dumps(found, indent=1))


def ours(arguments: argparse.Namespace) -> None:
    """`bitsmith compare` in empty folders: the files made and measured."""
    shutil.rmtree(arguments.work / "home", ignore_errors=True)
    found, times = compare(arguments, "--no-noise-floor")
    figures = {
        row["name"]: {
            "perplexity": row["summary"]["perplexity"]["value"],
            "kld": row["summary"]["kld"]["value"],
            "path": row["path"],
        }
        for row in found["rows"]
    }
    keep(arguments, "ours", {"times": {"whole": times}, "figures": figures})


def floor(arguments: argparse.Namespace) -> None:
    """What a repeated comparison takes, and one that also measures the noise floor."""
    times = {"again": compare(arguments, "--no-noise-floor")[1], "again, with noise floor": compare(arguments)[1]}
    keep(arguments, "floor", {"times": times})


def compare(arguments: argparse.Namespace, *more: str) -> tuple[dict[str, Any], Times]:
    """`bitsmith compare` of all files, as JSON."""
    words = ["compare", arguments.model, "--to", arguments.to, "--text", f"text={arguments.text}"]
    words += ["--context", arguments.context, "--max-windows", arguments.windows, "--threads", arguments.threads]
    words += ["--kernel", arguments.kernel, "--generate", 0, "--no-layers", "--json", "-q", *more]
    home = (arguments.work / "home").absolute()
    folders = {"XDG_CACHE_HOME": str(home / "cache"), "XDG_DATA_HOME": str(home / "data")}
    said, times = program([sys.executable, "-m", "bitsmith", *words], folders)
    found: dict[str, Any] = json.loads(said[said.index("{") :])
    return found, times


def llama(arguments: argparse.Namespace) -> None:
    """llama-quantize for each file, and llama-perplexity for the original and each file."""
    found = kept(arguments, "llama")
    files = kept(arguments, "ours")["figures"]
    base, new = arguments.work / "base.kld", arguments.work / "new.gguf"
    shared = ["-f", arguments.text, "-c", arguments.context, "--chunks", arguments.windows, "-t", arguments.threads]
    shared += ["--kl-divergence-base", base]
    perplexity, quantize = arguments.llama / "llama-perplexity", arguments.llama / "llama-quantize"
    times, figures = found["times"], found.setdefault("figures", {})
    if not base.is_file():
        times["original"] = program([perplexity, "-m", arguments.model, *shared])[1]
    for name in arguments.to.split(","):
        if name in figures:
            continue
        new.unlink(missing_ok=True)
        times[f"make {name}"] = program([quantize, arguments.model, new, name.upper(), arguments.threads])[1]
        said, times[name] = program([perplexity, "-m", files[name]["path"], *shared, "--kl-divergence"])
        figures[name] = {kind: float(matched(pattern, said)) for kind, pattern in _FIGURES.items()}
        new.unlink()
        keep(arguments, "llama", found)


def values(arguments: argparse.Namespace) -> None:
    """llama-perplexity on what each file holds, decoded to F32."""
    found = kept(arguments, "values")
    figures = found.setdefault("figures", {})
    files = {name: each["path"] for name, each in kept(arguments, "ours")["figures"].items()}
    base, new = arguments.work / "base-f32.kld", arguments.work / "new-f32.gguf"
    shared = ["-f", arguments.text, "-c", arguments.context, "--chunks", arguments.windows, "-t", arguments.threads]
    shared += ["--kl-divergence-base", base]
    for name in (None, *arguments.to.split(",")):
        if name in figures or (name is None and base.is_file()):
            continue
        new.unlink(missing_ok=True)
        source = arguments.model if name is None else files[name]
        program([sys.executable, "-m", "bitsmith", "convert", source, "--to", "f32", "-o", new])
        words = [arguments.llama / "llama-perplexity", "-m", new, *shared]
        said, _ = program(words if name is None else [*words, "--kl-divergence"])
        if name is not None:
            figures[name] = {kind: float(matched(pattern, said)) for kind, pattern in _FIGURES.items()}
        new.unlink()
        keep(arguments, "values", found)


def program(words: list[Any], more: dict[str, str] | None = None) -> tuple[str, Times]:
    """What a program says, and its seconds."""
    before, started = processor_seconds(), time.perf_counter()
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env={**os.environ, **(more or {})})
    times = [time.perf_counter() - started, processor_seconds() - before]
    if done.returncode:
        raise SystemExit(f"{words[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout + done.stderr, times


def processor_seconds() -> float:
    """Of all processes that were started and ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def matched(pattern: str, said: str) -> str:
    """The first group of a pattern."""
    found = re.search(pattern, said)
    if found is None:
        raise SystemExit(f"llama-perplexity did not say what was expected:\n{said[-500:]}")
    return found[1]


def compared(name: str, own: dict[str, float], other: dict[str, float]) -> str:
    """A line of the table."""
    parts = [f"{name:8}"]
    for kind, digits, width in (("perplexity", 4, 15), ("kld", 6, 17)):
        apart = 100 * (other[kind] / own[kind] - 1)
        parts.append(f"{own[kind]:{width}.{digits}f} {other[kind]:11.{digits}f} {apart:+8.2f}")
    return " ".join(parts)


def print_table(arguments: argparse.Namespace) -> None:
    """Both's figures for each file, and the times."""
    mine, theirs = kept(arguments, "ours"), kept(arguments, "llama")
    module = core()
    isa = "no core" if module is None else module.isa()
    print(f"{arguments.windows} windows of {arguments.context}, {arguments.threads} threads, {isa}")
    for title, part in (("packed", "llama"), ("values in F32", "values")):
        others = kept(arguments, part).get("figures", {})
        print(f"{title}\nfile     perplexity ours   llama.cpp        %    mean KLD ours  llama.cpp        %")
        for name, own in mine["figures"].items():
            if name in others:
                print(compared(name, own, others[name]))
    whole = [sum(each) for each in zip(*theirs["times"].values(), strict=True)]
    made = sum(times[0] for name, times in theirs["times"].items() if name.startswith("make "))
    times = {**mine["times"], **kept(arguments, "floor")["times"]}
    for name, (clock, processors) in times.items():
        print(f"ours, {name}: {clock:.1f} s, {processors:.1f} processor seconds")
    print(f"llama.cpp, whole: {whole[0]:.1f} s ({made:.1f} s of making), {whole[1]:.1f} processor seconds")
    print(f"ours / llama.cpp: {times['whole'][0] / whole[0]:.2f}, processors {times['whole'][1] / whole[1]:.2f}")


if __name__ == "__main__":
    main()
