"""What choosing types by a budget gains over the mixes of llama-quantize: the same bytes, the same rounding.

    python bench/budget.py --text held-out.txt
    python bench/budget.py --model DIR --text FILE --mix q4_k_m --method gptq --json
    python bench/budget.py --correlation 20

For each mix: `bitsmith quantize MODEL --to MIX`, then `bitsmith quantize MODEL --size BYTES` with the size of that file
to the byte, both with the same method. `bitsmith eval FILE --against MODEL --text FILE` measures both on a text that no
choice was made on. --llama DIR adds a column: llama-quantize of the same mix, with the matrix that llama-imatrix makes
of the same calibration text (of the built-in one without --calibration FILE), from the programs in that folder.
--correlation N compares predicted and true divergence of N random allocations instead: the cheap costs, added up,
beside the divergence on windows that the costs were not measured on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

MIXES = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_m")


@dataclass(frozen=True)
class Row:
    """One size: bytes of both files, their mean KLD with its standard error, and the seconds that ours took."""

    mix: str
    bytes_mix: int
    bytes_ours: int
    kld_mix: float
    kld_ours: float
    error_ours: float
    seconds: float
    bytes_llama: int | None = None
    kld_llama: float | None = None

    @property
    def ratio(self) -> float:
        """Our KLD divided by that of the mix."""
        return self.kld_ours / self.kld_mix

    @property
    def ratio_llama(self) -> float | None:
        """Our KLD divided by that of llama-quantize's file."""
        return None if self.kld_llama is None else self.kld_ours / self.kld_llama


def bitsmith(*words: str) -> str:
    """Standard output of a command. Raises CalledProcessError."""
    command = [sys.executable, "-m", "bitsmith", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measured(model: str, file: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Mean KLD and its standard error."""
    words = ["eval", str(file), "--against", model, "--json", "--quiet", "--context", "256"]
    words += ["--text", options.text] if options.text else []
    words += ["--max-windows", str(options.windows)] if options.windows else []
    found = json.loads(bitsmith(*words))["divergence"]["kld"]
    return float(found["value"]), float(found["error"])


def row(mix: str, options: argparse.Namespace, folder: Path) -> Row:
    """Make and measure both files of a mix."""
    more = ["--quiet", "--force", *(["--method", options.method] if options.method else [])]
    more += ["--calibration", options.calibration] if options.calibration else []
    more += ["--calibration-tokens", str(options.tokens)] if options.tokens else []
    theirs, ours = folder / f"{mix}.gguf", folder / f"{mix}-ours.gguf"
    bitsmith("quantize", options.model, "--to", mix, "--out", str(theirs), *more)
    began = time.monotonic()
    bitsmith("quantize", options.model, "--size", str(theirs.stat().st_size), "--out", str(ours), *more)
    seconds = time.monotonic() - began
    assert ours.stat().st_size <= theirs.stat().st_size
    found, (kld, error) = measured(options.model, theirs, options)[0], measured(options.model, ours, options)
    peer = llama(mix, options, folder) if options.llama else (None, None)
    return Row(mix, theirs.stat().st_size, ours.stat().st_size, found, kld, error, seconds, *peer)


def llama(mix: str, options: argparse.Namespace, folder: Path) -> tuple[int, float]:
    """Bytes and mean KLD of llama-quantize's file. The importance matrix is made once, and kept in --keep if given."""
    from bitsmith.reference.texts import calibration_text

    kept = Path(options.keep) if options.keep else folder
    source, matrix, made = kept / "source.gguf", kept / "imatrix.gguf", folder / f"{mix}-llama.gguf"
    if not matrix.exists():
        bitsmith("quantize", options.model, "--to", "bf16", "--out", str(source), "--quiet", "--force")
        text = Path(options.calibration)
        if not text.is_file():
            text = kept / "calibration.txt"
            text.write_text(calibration_text())
        words = [f"{options.llama}/llama-imatrix", "-m", source, "-f", text, "-o", matrix, "-c", "512", "-t", "1"]
        subprocess.run([*map(str, words), "-ngl", "0"], check=True, capture_output=True)
    words = [f"{options.llama}/llama-quantize", "--imatrix", matrix, source, made, mix.upper(), "1"]
    subprocess.run([*map(str, words)], check=True, capture_output=True)
    return made.stat().st_size, measured(options.model, made, options)[0]


def correlation(options: argparse.Namespace) -> None:
    """Print predicted and true divergences of random allocations, and their rank correlation."""
    from bitsmith.models.checkpoint import open_checkpoint
    from bitsmith.pipeline.config import QuantizeConfig
    from bitsmith.pipeline.sensitivities import sensitivities_of
    from bitsmith.recipe.allocation.units import Allocatable
    from bitsmith.recipe.recipe import PlanOptions
    from bitsmith.recipe.target import Target
    from bitsmith.system.progress import silent

    checkpoint = open_checkpoint(options.model)
    target = Target("gguf", "q4_k_m")
    allocatable = Allocatable(checkpoint, target, PlanOptions(filename="x.gguf"))
    config = QuantizeConfig(method=options.method, calibration=options.calibration or None)
    found = sensitivities_of(allocatable, config, silent)
    random = np.random.default_rng(0)
    predicted, true = [], []
    for _ in range(options.correlation):
        low, high = np.sort(random.integers(0, 8, 2))
        chosen = [int(min(random.integers(low, high + 1), len(unit.choices) - 1)) for unit in allocatable.units]
        predicted.append(float(sum(cost[at] for cost, at in zip(found.costs, chosen, strict=True))))
        true.append(found.true(chosen))
        print(f"predicted {predicted[-1]:.5f}  true {true[-1]:.5f}", flush=True)
    ranks = np.array([np.argsort(np.argsort(values)) for values in (predicted, true)])
    print(f"rank correlation {np.corrcoef(ranks)[0, 1]:.4f}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--text", default="")
    parser.add_argument("--windows", type=int, default=0)
    parser.add_argument("--mix", action="append")
    parser.add_argument("--method", default=None)
    parser.add_argument("--calibration", default="")
    parser.add_argument("--tokens", type=int, default=0, help="calibration tokens; default: bitsmith's")
    parser.add_argument("--llama", default="", metavar="DIR")
    parser.add_argument("--keep", default="", metavar="DIR", help="where the importance matrix stays for further runs")
    parser.add_argument("--correlation", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.correlation:
        correlation(options)
        return
    table = Table(
        "mix", "bytes", "ours", "KLD of the mix", "KLD of ours", "ratio", "KLD of llama.cpp", "ratio", "seconds"
    )
    with tempfile.TemporaryDirectory() as folder:
        for mix in options.mix or MIXES:
            found = row(mix, options, Path(folder))
            if options.json:
                print(json.dumps({**asdict(found), "ratio": found.ratio, "ratio_llama": found.ratio_llama}), flush=True)
            cells = (f"{found.bytes_mix:,}", f"{found.bytes_ours:,}", f"{found.kld_mix:.5f}")
            table.add_row(
                mix,
                *cells,
                f"{found.kld_ours:.5f} ± {found.error_ours:.5f}",
                f"{found.ratio:.3f}",
                "" if found.kld_llama is None else f"{found.kld_llama:.5f}",
                "" if found.ratio_llama is None else f"{found.ratio_llama:.3f}",
                f"{found.seconds:.0f}",
            )
    if not options.json:
        Console().print(table)


if __name__ == "__main__":
    main()
