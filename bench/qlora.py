"""Adapters over a quantized base: what they learn beside LoRA in 16 bits and full fine-tuning, and what a step costs.

    python bench/qlora.py loss [MODEL] [--steps 60]             losses on source code, which the base is bad at
    python bench/qlora.py speed FOLDER [--dtype bfloat16]       seconds a step and memory, beside peft + bitsandbytes
    python bench/qlora.py speed FOLDER --plan                   the same, and what `bitsmith plan --training` says

The code is Python's own standard library: modules a to m to train on, n to z to measure on. Every run has the same
rows, steps and seed. In `speed` each side runs in a process of its own, one after the other; seconds are the median of
the steps after the first (processor seconds depend less on what else the machine does), memory is the peak of the
process's own memory, without pages of mapped files, above what it had after its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MB = 1e6
_TEXT = 6000  # characters of a text
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    """Run one part."""
    args = _arguments()
    if args.side:
        print(json.dumps(_side(args)))
    elif args.part == "loss":
        _losses(args)
    else:
        _speeds(args)


def _code(folder: Path, train: int, held_out: int) -> tuple[Path, Path]:
    """Source code to train on and to measure on, so many texts of each, one a line."""
    library = Path(os.__file__).parent
    found = [folder / "train.jsonl", folder / "held-out.jsonl"]
    for path, low, high, most in zip(found, "an", "mz", (train, held_out), strict=True):
        chosen = [file for file in sorted(library.glob("*.py")) if low <= file.name[0].lower() <= high]
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in chosen]
        lines = [json.dumps({"text": text[:_TEXT]}) for text in texts if len(text) >= _TEXT]
        path.write_text("\n".join(lines[:: -(-len(lines) // most)]), encoding="utf-8")
    return found[0], found[1]


def _losses(args: argparse.Namespace) -> None:
    import bitsmith

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, held_out = _code(folder, 40, 10)
        words: dict[str, Any] = {"data": train, "eval_data": held_out, "packing": True, "context": args.context}
        words |= {"steps": args.steps, "batch": args.batch, "accumulate": 1, "threads": args.threads, "seed": args.seed}
        words |= {"save_every": args.steps, "checkpointing": False}
        print(
            "| what is trained | learning rate | before | after | trained numbers | s a step |\n"
            "|---|---|---|---|---|---|"
        )
        kinds = (("LoRA, f32 base", "f32"), ("QLoRA, nf4-dq", "nf4-dq"), ("QLoRA, int4-g64", "int4-g64"))
        for label, format in kinds:
            made = bitsmith.tune_qlora(args.model, out=folder / format, format=format, learning_rate=args.rate, **words)
            _line(label, args.rate, made.loss_before, made.loss_after, made.trained, made.seconds / args.steps)
        _line("all weights, f32", args.full_rate, *_full(args, train, held_out))


def _line(label: str, rate: float, before: Any, after: Any, trained: int, seconds: float) -> None:
    print(f"| {label} | {rate:g} | {before:.4f} | {after:.4f} | {trained:,} | {seconds:.2f} |", flush=True)


def _full(args: argparse.Namespace, train: Path, held_out: Path) -> tuple[float, float, int, float]:
    """Full fine-tuning on the same rows: losses before and after, trained numbers, seconds a step."""
    import torch

    from bitsmith.tune.base import load_base, open_base
    from bitsmith.tune.batches import Collator, rows_of
    from bitsmith.tune.examples import read_examples
    from bitsmith.tune.training import held_out_loss

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    base = open_base(args.model, "f32", None)
    model = load_base(base, dtype="float32", device="cpu").requires_grad_(True)
    tokenizer = base.checkpoint.tokenizer()
    rows, judged = (
        rows_of(
            read_examples([path], tokenizer, context=args.context, option="--data").examples,
            context=args.context,
            packing=True,
        )
        for path in (train, held_out)
    )
    collator = Collator(0, True)
    before = held_out_loss(model, judged, collator, args.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.full_rate, weight_decay=0.0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed)).tolist()
    started = time.perf_counter()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.full_rate * (1 - step / args.steps)
        at = [order[(step * args.batch + i) % len(order)] for i in range(args.batch)]
        optimizer.zero_grad()
        model(**collator([rows[i] for i in at])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = (time.perf_counter() - started) / args.steps
    after = held_out_loss(model, judged, collator, args.batch)
    return before, after, sum(value.numel() for value in model.parameters()), seconds


def _speeds(args: argparse.Namespace) -> None:
    print("| side | base's memory | s a step | CPU s a step | peak memory | loss of the first step |")
    print("|---|---|---|---|---|---|")
    for side in args.sides:
        command = [sys.executable, __file__, "speed", str(args.model), "--side", side, "--dtype", args.dtype]
        for flag in ("context", "batch", "steps", "threads", "seed"):
            command += [f"--{flag}", str(getattr(args, flag))]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode:
            print(f"| {side} | failed: {said.stderr.strip().splitlines()[-1:]} |")
            continue
        found = json.loads(said.stdout.splitlines()[-1])
        print(
            f"| {side} | {found['base'] / MB:.0f} MB | {found['seconds']:.2f} | {found['processor']:.2f} | "
            f"{found['peak'] / MB:.0f} MB | {found['loss']:.4f} |",
            flush=True,
        )
    if args.plan:
        _plan(args)


def _plan(args: argparse.Namespace) -> None:
    from bitsmith.tune.base import open_base
    from bitsmith.tune.config import QloraConfig
    from bitsmith.tune.memory import planned_memory

    config = QloraConfig(data="x", out="x", batch=args.batch)
    base = open_base(args.model, "nf4-dq", None)
    planned = planned_memory(base, config, args.context, dtype=args.dtype, device="cpu")
    if planned is not None:
        activations = planned.training.activations / MB
        print(
            f"planned: {planned.total / MB:.0f} MB, of which activations are {activations:.0f} MB and buffers "
            f"{planned.buffers / MB:.0f} MB"
        )


def _side(args: argparse.Namespace) -> dict[str, float]:
    import torch
    import transformers.trainer  # noqa: F401

    import bitsmith.tune.adapters  # noqa: F401 - what a side imports later is no memory of its base
    from bitsmith.system.memory import OwnMemoryPeak, give_freed_memory_back
    from bitsmith.tune.base import model_class, open_base
    from bitsmith.tune.memory import returned_blocks

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model_class(open_base(args.model, None, None))
    if args.side == "bitsmith":  # as `tune qlora` does
        give_freed_memory_back(returned_blocks(args.dtype))
    with OwnMemoryPeak() as peak:
        return _steps(args, peak)


def _steps(args: argparse.Namespace, peak: Any) -> dict[str, float]:
    import peft
    import torch
    import transformers

    from bitsmith.system.memory import give_freed_memory_back
    from bitsmith.tune.lora_layer import register
    from bitsmith.tune.memory import returned_blocks

    model = _bitsmith(args) if args.side == "bitsmith" else _bitsandbytes(args)
    if args.side == "bitsmith":
        give_freed_memory_back(returned_blocks(args.dtype))
    model.config.use_cache = False
    loaded = peak.bytes
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    if args.side == "bitsmith":
        register(lora)
    model = peft.get_peft_model(model, lora)
    model.train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    vocab = transformers.AutoConfig.from_pretrained(args.model).vocab_size
    ids = torch.randint(0, vocab, (args.batch, args.context), generator=torch.Generator().manual_seed(args.seed))
    loss_of = _slab_loss(model) if args.side == "bitsmith" else lambda ids: model(input_ids=ids, labels=ids).loss
    times, worked, losses = [], [], []
    for _ in range(args.steps):
        began, busy = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        loss = loss_of(ids)
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
        worked.append(time.process_time() - busy)
        losses.append(float(loss.detach()))
    return {
        "base": loaded,
        "seconds": statistics.median(times[1:] or times),
        "processor": statistics.median(worked[1:] or worked),
        "peak": peak.bytes,
        "loss": losses[0],
    }


def _slab_loss(model: Any) -> Any:
    """The loss of `tune qlora`, which computes logits by slabs of rows."""
    from bitsmith.tune.loss import find_head, token_loss

    head = find_head(model)

    def loss_of(ids: Any) -> Any:
        total, count = token_loss(model, head, {"input_ids": ids, "labels": ids})
        return total / count

    return loss_of


def _bitsmith(args: argparse.Namespace) -> Any:
    from bitsmith.tune.base import load_base, open_base

    return load_base(open_base(args.model, "nf4-dq", None), dtype=args.dtype, device="cpu")


def _bitsandbytes(args: argparse.Namespace) -> Any:
    import torch
    import transformers

    dtype = getattr(torch, args.dtype)
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, quantization_config=how, dtype=dtype, device_map={"": "cpu"}
    )
    return model.requires_grad_(False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("loss", "speed"))
    parser.add_argument("model", nargs="?", default="reference")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--full-rate", type=float, default=3e-4)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--sides", nargs="+", default=("bitsmith", "bitsandbytes"))
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
