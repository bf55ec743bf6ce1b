"""Quantize a Hugging Face folder with llm-compressor, and write what its weights decode to.

    python bench/peers/llmcompressor_driver.py MODEL OUT --method gptq --bits 4 --group-size 128 --calibration FILE

In an environment of its own (torch 2.13.0, llmcompressor==0.14.0.1); called by `bench/calibrated.py --peer-python`.
OUT is a folder of float32 safetensors, so that widths without a packed layout can be measured too. The last line
printed is JSON: {"bits_per_weight": ...} of the packed form, with 16-bit scales, and zero points as wide as the codes.

All else is the tool's default: scales from the minimum and maximum, GPTQ with static activation order and damping 0.01,
AWQ with its default mappings; linears of the blocks are quantized, embedding and head kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from windows import calibration_windows

BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
STORED_BITS = 16  # of a weight that is kept, and of a scale


def recipe(args: argparse.Namespace) -> list[Any]:
    """The modifiers, in order."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = {
        "num_bits": args.bits,
        "type": "int",
        "symmetric": not args.asym,
        "strategy": "group",
        "group_size": args.group_size,
    }
    groups = {"linears": {"targets": ["Linear"], "weights": weights}}
    rounding = GPTQModifier if args.method.endswith("gptq") else QuantizationModifier
    before = [AWQModifier()] if args.method.startswith("awq") else []
    return [*before, rounding(config_groups=groups, ignore=["lm_head"])]


def allow_cpu() -> None:
    """AWQ pins its cached activations to an accelerator's memory and fails where there is none: here it need not."""
    if not torch.accelerator.is_available():
        torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign]


def decoded(model: Any, args: argparse.Namespace) -> tuple[dict[str, torch.Tensor], float]:
    """What each weight decodes to, float32 by name; and bits per weight of the packed form."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    state = {
        name: value.detach().float().clone()
        for name, value in model.state_dict().items()
        if name.rpartition(".")[2] in ("weight", "bias")
    }
    bits = dict.fromkeys(state, float(STORED_BITS))
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None or scheme.weights is None:
            continue
        zero_point = getattr(module, "weight_zero_point", None)
        weight, scale = module.weight.detach().float(), module.weight_scale.detach().float()
        state[f"{name}.weight"] = fake_quantize(weight, scale, zero_point, scheme.weights).contiguous()
        beside = STORED_BITS + (args.bits if args.asym else 0)
        bits[f"{name}.weight"] = args.bits + beside / args.group_size
    total = sum(value.numel() for value in state.values())
    return state, sum(bits[name] * value.numel() for name, value in state.items()) / total


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--method", required=True, choices=["rtn", "gptq", "awq", "awq+gptq"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--asym", action="store_true", help="with zero points")
    parser.add_argument("--calibration", type=Path, required=True, help="UTF-8 text")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="draws the calibration windows")
    return parser.parse_args()


def main() -> None:
    """Quantize, decode, write."""
    args = parse_args()
    from llmcompressor import oneshot

    allow_cpu()
    torch.manual_seed(args.seed)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if args.method == "rtn":
        oneshot(model=model, recipe=recipe(args))
    else:
        rows = calibration_windows(tokenizer, args.calibration, args.tokens, args.context, args.seed)
        oneshot(
            model=model,
            recipe=recipe(args),
            dataset=Dataset.from_list([{name: value.tolist() for name, value in row.items()} for row in rows]),
            num_calibration_samples=len(rows),
            max_seq_length=args.context,
            shuffle_calibration_samples=False,
        )
    state, bits_per_weight = decoded(model, args)
    args.out.mkdir(parents=True)
    save_file(state, args.out / "model.safetensors", metadata={"format": "pt"})
    for name in BESIDE:
        if (args.model / name).exists():
            shutil.copy(args.model / name, args.out)
    print(json.dumps({"bits_per_weight": bits_per_weight}))


if __name__ == "__main__":
    main()
