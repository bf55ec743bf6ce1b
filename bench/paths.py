"""What the int8 kernel's rounding of inputs costs: its divergence from the torch kernel, file type by file type.

    python bench/paths.py [--type q4_k_m ...] [--windows 40] [--json]

Both run the same file of the built-in model: torch with float32 inputs, and the C++ core, once with whole windows
(prompts) and once token by token (generation). Mean KLD in nats a token, on the built-in held-out text.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import bitsmith
from bitsmith.evaluation.divergence import DivergenceMeter, compare
from bitsmith.evaluation.windows import cut_windows
from bitsmith.reference.texts import evaluation_text

CONTEXT = 256
STEPS = 64  # tokens of a window that are generated one by one
MIXES = (
    "f16",
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q5_1",
    "q5_0",
    "q4_k_m",
    "q4_1",
    "q4_0",
    "iq4_xs",
    "iq4_nl",
    "q3_k_m",
    "q2_k",
)


@dataclass(frozen=True)
class PathLoss:
    """Mean KLD of the int8 kernel from the torch kernel, with its standard error."""

    type: str
    prompt: float
    prompt_error: float
    generation: float
    generation_error: float


def measure(mix: str, folder: Path, windows: int) -> PathLoss:
    """Both ways of running one file."""
    file = bitsmith.quantize("reference", to=mix, out=folder / f"{mix}.gguf").out
    int8, reference = (bitsmith.load(file, kernel=kernel) for kernel in ("int8", "torch"))
    ids = np.asarray(int8.tokenizer.encode(evaluation_text(), add_special=True), np.int64)
    cut = cut_windows(ids, CONTEXT, start_token=None, name="the built-in text").tokens[:windows]
    prompt, generation = (DivergenceMeter(int8.config.vocab) for _ in range(2))
    for tokens in cut:
        expected = reference.logits(tokens[None, :-1])[0]
        targets = tokens[1:]
        prompt.add(compare(int8.logits(tokens[None, :-1])[0], expected, targets))
        cache = int8.decoder.new_cache(STEPS)
        steps = [int8.decoder.numpy(int8.decoder.prefill(tokens[None, i : i + 1], cache))[0] for i in range(STEPS)]
        generation.add(compare(np.stack(steps), expected[:STEPS], targets[:STEPS]))
    first, second = prompt.result().kld, generation.result().kld
    return PathLoss(mix, first.value, first.error, second.value, second.error)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", action="append", help="repeatable; default: all")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(mix, Path(folder), args.windows) for mix in args.type or MIXES]
    if args.json:
        print(json.dumps([asdict(loss) for loss in found], indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("type", "mean KLD, prompts", "generation"):
        table.add_column(heading, justify="left" if heading == "type" else "right")
    for loss in found:
        prompt = f"{loss.prompt:.2e} ± {loss.prompt_error:.0e}"
        table.add_row(loss.type, prompt, f"{loss.generation:.2e} ± {loss.generation_error:.0e}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
