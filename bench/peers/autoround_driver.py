"""Quantize a Hugging Face folder with AutoRound into a GPTQ folder.

    python bench/peers/autoround_driver.py MODEL OUT --bits 4 --group-size 128 --calibration FILE

In an environment of its own (torch 2.13.0, auto-round==0.16.1); called by `bench/calibrated.py --autoround-python`.
200 iterations a block, batches of 8 windows, the tool's other defaults; linears of the blocks are quantized.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from auto_round import AutoRound
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer
from windows import calibration_windows

BATCH = 8


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--asym", action="store_true", help="with zero points")
    parser.add_argument("--iterations", type=int, default=200, help="a block")
    parser.add_argument("--calibration", type=Path, required=True, help="UTF-8 text")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="draws the calibration windows")
    return parser.parse_args()


def main() -> None:
    """Quantize and write."""
    args = parse_args()
    torch.manual_seed(args.seed)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = calibration_windows(tokenizer, args.calibration, args.tokens, args.context, args.seed)
    made = args.out.with_name(f"{args.out.name}-made")  # the tool adds a folder of its own naming
    AutoRound(
        model,
        tokenizer,
        bits=args.bits,
        group_size=args.group_size,
        sym=not args.asym,
        iters=args.iterations,
        nsamples=len(rows),
        seqlen=args.context,
        batch_size=BATCH,
        dataset=DataLoader(rows, batch_size=BATCH),  # type: ignore[arg-type]
        device_map="cpu",
        enable_torch_compile=False,
    ).quantize_and_save(str(made), format="auto_gptq")
    (config,) = made.rglob("config.json")
    config.parent.rename(args.out)
    shutil.rmtree(made, ignore_errors=True)


if __name__ == "__main__":
    main()
