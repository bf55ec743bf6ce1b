"""Quantize a Hugging Face folder with AutoRound into a GPTQ folder, or a GGUF file.

    python bench/peers/autoround_driver.py MODEL OUT --bits 4 --group-size 128 --calibration FILE
    python bench/peers/autoround_driver.py MODEL OUT.gguf --gguf q2_k_s --calibration FILE

In an environment of its own (torch 2.13.0, auto-round==0.16.1, gguf, sentencepiece); called by `bench/calibrated.py
--autoround-python`.
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
    parser.add_argument("--gguf", metavar="MIX", help="a GGUF file in this mix: q2_k_s ...")
    parser.add_argument("--alg-ext", action="store_true", help="what the tool recommends for GGUF")
    parser.add_argument("--iterations", type=int, default=200, help="a block")
    parser.add_argument("--blocks", type=int, help="quantize the first blocks alone (default: all)")
    parser.add_argument("--calibration", type=Path, required=True, help="UTF-8 text")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="draws the calibration windows")
    return parser.parse_args()


def know_the_tokenizer() -> None:
    """The tool's copy of llama.cpp's converter knows tokenizers by a hash, and not the built-in model's, a GPT-2's."""
    from auto_round.export.export_to_gguf import llama_cpp_conversion as tool

    context = tool._import_conversion_from(tool._bundled_root(), "the tool's own")  # what it will use later
    model = context.module.base.TextModel
    known = model.get_vocab_base_pre

    def found(self: object, tokenizer: object) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            return "gpt-2"

    model.get_vocab_base_pre = found


def main() -> None:
    """Quantize and write."""
    args = parse_args()
    torch.manual_seed(args.seed)
    if args.gguf:
        know_the_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = calibration_windows(tokenizer, args.calibration, args.tokens, args.context, args.seed)
    made = args.out.with_name(f"{args.out.name}-made")  # the tool adds a folder of its own naming
    integers = {"bits": args.bits, "group_size": args.group_size, "sym": not args.asym}
    left = range(model.config.num_hidden_layers)[args.blocks :] if args.blocks else ()
    AutoRound(
        model,
        tokenizer,
        **({"scheme": f"gguf:{args.gguf}"} if args.gguf else integers),
        ignore_layers=",".join(f"model.layers.{layer}." for layer in left),
        enable_alg_ext=args.alg_ext,
        iters=args.iterations,
        nsamples=len(rows),
        seqlen=args.context,
        batch_size=BATCH,
        dataset=DataLoader(rows, batch_size=BATCH),  # type: ignore[arg-type]
        device_map="cpu",
        enable_torch_compile=False,
    ).quantize_and_save(str(made), format=f"gguf:{args.gguf}" if args.gguf else "auto_gptq")
    (found,) = made.rglob("*.gguf" if args.gguf else "config.json")
    (found if args.gguf else found.parent).rename(args.out)
    shutil.rmtree(made, ignore_errors=True)


if __name__ == "__main__":
    main()
