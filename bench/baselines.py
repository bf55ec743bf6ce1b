"""Four and eight bits without calibration beside each other: size, loss, memory and speed of absmax, NF4, FP4, int8.

    python bench/baselines.py MODEL [--context 256] [--windows 20] [--text FILE] [--outliers] [--to NAME ...]

Each file is made, measured and run by the command line, one process after the other. The original is MODEL.

--outliers first plants outliers: in every block some channels of the norms are multiplied and the matrices behind them
divided by the same, which changes nothing but the inputs of products; then it compares roundings of inputs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

FORMATS = (
    *("native/f16", "native/int8-channel", "bnb/int8", "bnb/nf4", "bnb/nf4-dq", "bnb/fp4"),
    *(f"native/int{bits}-{scope}" for bits in (4, 3, 2) for scope in ("tensor", "channel", "g64")),  # absmax
)
CHANNELS, FACTOR = 6, 64.0  # planted outliers of each norm, and how much larger they are


def bitsmith(*words: str) -> dict[str, Any]:
    """The JSON of a command."""
    done = subprocess.run([sys.executable, "-m", "bitsmith", *words, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bitsmith {' '.join(words)}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def planted(model: Path, out: Path) -> Path:
    """The model with outliers in the inputs of q, k, v and gate, up; its outputs are those of the model in F32."""
    shutil.copytree(model, out)
    tensors = {name: x.astype(np.float32) for name, x in load_file(model / "model.safetensors").items()}
    rng = np.random.default_rng(0)
    behind = {"input_layernorm": ("q_proj", "k_proj", "v_proj"), "post_attention_layernorm": ("gate_proj", "up_proj")}
    for name in [name for name in tensors if name.endswith("layernorm.weight")]:
        prefix, _, norm = name.removesuffix(".weight").rpartition(".")
        chosen = rng.choice(len(tensors[name]), CHANNELS, replace=False)
        tensors[name][chosen] *= FACTOR
        for other in tensors:
            if other.startswith(f"{prefix}.") and other.removesuffix(".weight").endswith(behind[norm]):
                tensors[other][:, chosen] /= FACTOR
    stored = {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    return out


def measured(model: str, original: str, args: argparse.Namespace, *words: str) -> dict[str, Any]:
    """What `bitsmith eval` says of a file."""
    common = ("--context", str(args.context), "--max-windows", str(args.windows))
    texts = ("--text", args.text) if args.text else ()
    return bitsmith("eval", model, "--against", original, *common, *texts, *words)


def row(label: str, said: dict[str, Any], size: float | None = None, speed: dict[str, Any] | None = None) -> None:
    """Print one line of the table."""
    kld, agreement = said["divergence"]["kld"], said["divergence"]["top1"]["value"]
    cells = [label, "" if size is None else f"{size / 1e6:.2f} MB", f"{said['perplexity']['value']:.3f}"]
    cells += [f"{kld['value']:.5f} ± {kld['error']:.5f}", f"{100 * agreement:.1f} %"]
    if speed is not None:
        rate = speed["generation"]["tokens_per_second"]["mean"]
        cells += [f"{speed['peak_memory_bytes'] / 1e6:.0f} MB", f"{rate:.1f}"]
    print("| " + " | ".join(cells) + " |", flush=True)


def formats(model: str, folder: Path, args: argparse.Namespace) -> None:
    """One line for each format."""
    print("| format | size | perplexity | mean KLD | same top token | peak memory | generation, tokens/s |")
    print("|---|---|---|---|---|---|---|")
    for to in args.to or FORMATS:
        made = bitsmith("quantize", model, "--to", to, "--out", str(folder / to.replace("/", "-")))
        said = measured(made["out"], model, args)
        speed = bitsmith("bench", made["out"], "--prompt", "0", "--gen", "16", "--repeat", "2")
        row(f"`{to}`", said, made["bytes"], speed)


def outliers(model: str, folder: Path, args: argparse.Namespace) -> None:
    """Roundings of inputs on a model with outliers."""
    source = str(planted(Path(model), folder / "planted"))
    print("| weights and inputs | size | perplexity | mean KLD | same top token |")
    print("|---|---|---|---|---|")
    eight = bitsmith("quantize", source, "--to", "bnb/int8", "--out", str(folder / "int8"))["out"]
    for inputs in ("none", "int8", "llm.int8"):
        row(f"`bnb/int8`, `--inputs {inputs}`", measured(eight, source, args, "--inputs", inputs))
    words = ("--method", "smoothquant", "--calibration", "default", "--calibration-tokens", "4096")
    smooth = bitsmith("quantize", source, "--to", "compressed/w8a8", *words, "--out", str(folder / "smooth"))["out"]
    row("`compressed/w8a8`, SmoothQuant", measured(smooth, source, args))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--text")
    parser.add_argument("--outliers", action="store_true")
    parser.add_argument("--to", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (outliers if args.outliers else formats)(args.model, Path(folder), args)


if __name__ == "__main__":
    main()
