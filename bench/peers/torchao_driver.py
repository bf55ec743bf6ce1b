"""Train a Hugging Face folder with torchao's fake quantization, and write the values of its grid as a folder.

    python bench/peers/torchao_driver.py MODEL OUT TEXT --bits 2 --group 64 --steps 250 --batch 8

In an environment with torch 2.13.0, torchao 0.18.0 and transformers; called by `bench/trained.py --torchao-python`.
torchao prepares the linears of the blocks (weights alone, symmetric groups, scales from absmax at each step). Its own
recipes train on labels; here the loss is the divergence from the original, as in bitsmith's training, so that the two
differ only in how they quantize. AdamW, a linear schedule with ten steps of warm-up, products in bfloat16.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torchao.quantization import quantize_
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
from torchao.quantization.qat.linear import FakeQuantizedLinear
from transformers import AutoModelForCausalLM, AutoTokenizer
from windows import calibration_windows

WARMUP = 10


def main() -> None:
    """Train and write."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    teacher = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    student = copy.deepcopy(teacher)
    how = IntxFakeQuantizeConfig(getattr(torch, f"int{args.bits}"), group_size=args.group, is_symmetric=True)
    quantize_(
        student.model.layers,
        QATConfig(weight_config=how, step="prepare"),
        filter_fn=lambda module, name: isinstance(module, torch.nn.Linear),
    )
    found = calibration_windows(tokenizer, args.text, args.tokens, args.context)
    rows = torch.stack([each["input_ids"] for each in found])
    _train(args, student, teacher, rows)
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, FakeQuantizedLinear):
                module.weight.copy_(module.weight_fake_quantizer(module.weight))
    teacher.load_state_dict({name: value for name, value in student.state_dict().items() if "fake_quant" not in name})
    teacher.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


def _train(args: argparse.Namespace, student: torch.nn.Module, teacher: torch.nn.Module, rows: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.rate, weight_decay=0.0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed))
    for step in range(args.steps):
        share = min(1.0, (step + 1) / WARMUP) * (1 - step / args.steps)
        for group in optimizer.param_groups:
            group["lr"] = args.rate * share
        at = [int(order[(step * args.batch + i) % len(order)]) for i in range(args.batch)]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                known = teacher(rows[at]).logits.float().log_softmax(-1)
            theirs = student(rows[at]).logits.float().log_softmax(-1)
        loss = (known.exp() * (known - theirs)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0:
            print(step, float(loss.detach()), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("text", type=Path, help="UTF-8 text")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=524288)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
