"""Quantized layers of torch beside bitsandbytes, on a CPU, in one run: time to quantize, forward, backward, generation.

    python bench/torch_layers.py --model FOLDER              layers of 2048 x 5632, then the model inside transformers
    python bench/torch_layers.py --dtype float32 --json

Needs bitsandbytes, and accelerate for its models. Each side runs in a process of its own, one after the other in turns,
so that both see the same load of the machine; each figure is the best of its rounds. Memory is the peak of the process
over what it had with torch and transformers imported.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = ("bitsmith", "bitsandbytes", "torch")
COLS, ROWS = 2048, 5632


def best(rounds: int, body: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls, after one that warms up."""
    body()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        body()
        times.append(time.perf_counter() - start)
    return min(times)


def peak() -> float:
    """Peak memory of this process: MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def layer(side: str, dtype: Any, compute: str | None) -> Callable[[], Any]:
    """A function that makes a quantized layer from the same weights every time."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    original = nn.Linear(COLS, ROWS, bias=False, dtype=dtype)
    original.weight.requires_grad_(False)

    def with_bitsmith() -> Any:
        import bitsmith.torch

        made = nn.Sequential(nn.Linear(1, 1, bias=False))
        made[0] = nn.Linear(COLS, ROWS, bias=False, device="meta")
        made[0].weight = original.weight
        bitsmith.torch.quantize_module(made, "nf4", compute_dtype=compute)
        return made

    def with_bitsandbytes() -> Any:
        import bitsandbytes

        made = bitsandbytes.nn.Linear4bit(COLS, ROWS, bias=False, compute_dtype=dtype, quant_type="nf4")
        made.weight = bitsandbytes.nn.Params4bit(original.weight.data, requires_grad=False, quant_type="nf4")
        return made.to("cpu")

    return {"bitsmith": with_bitsmith, "bitsandbytes": with_bitsandbytes, "torch": lambda: original}[side]


def measure_layer(side: str, dtype_name: str, compute: str | None, rounds: int) -> dict[str, float]:
    """Milliseconds of each step of one layer."""
    import torch

    dtype = getattr(torch, dtype_name)
    make = layer(side, dtype, compute)
    found = {"quantize": 1000 * best(rounds, make)}
    made = make()
    for batch in (1, 128):
        x = torch.randn(batch, COLS, dtype=dtype)
        with torch.no_grad():
            found[f"forward {batch}"] = 1000 * best(rounds, functools.partial(made, x))
    x = torch.randn(128, COLS, dtype=dtype, requires_grad=True)
    y = made(x)
    grad = torch.randn_like(y)
    found["backward 128"] = 1000 * best(rounds, lambda: torch.autograd.grad(y, x, grad, retain_graph=True))
    return found


def measure_model(side: str, dtype_name: str, compute: str | None, folder: str, tokens: int) -> dict[str, float]:
    """Loading and generating inside transformers: seconds, MB, tokens a second."""
    import torch
    import transformers

    dtype = getattr(torch, dtype_name)
    before = peak()
    start = time.perf_counter()
    model: Any
    if side == "bitsmith":
        import bitsmith.torch

        model = bitsmith.torch.from_pretrained(folder, "nf4", dtype=dtype, compute_dtype=compute)
    else:
        config = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
        given = {"quantization_config": config} if side == "bitsandbytes" else {}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **given)
    load = time.perf_counter() - start
    used = peak() - before
    prompt = torch.arange(100, 228)[None]
    made = {"do_sample": False, "pad_token_id": 0}
    model.generate(prompt[:, :4], max_new_tokens=2, **made)

    def one() -> Any:
        return model.generate(prompt, min_new_tokens=1, max_new_tokens=1, **made)

    def many() -> Any:
        return model.generate(prompt, min_new_tokens=tokens + 1, max_new_tokens=tokens + 1, **made)

    first = best(2, one)
    return {
        "load s": load,
        "load peak MB": used,
        "prompt 128 tokens/s": 128 / first,
        "generation tokens/s": tokens / max(best(2, many) - first, 1e-9),
    }


def worker(arguments: argparse.Namespace) -> None:
    """One side, its figures as JSON on the last line."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.set_num_threads(arguments.threads)
    found = measure_layer(arguments.side, arguments.dtype, arguments.compute, arguments.rounds)
    if arguments.model:
        found |= measure_model(arguments.side, arguments.dtype, arguments.compute, arguments.model, arguments.tokens)
    print(json.dumps(found))


def ask(side: str, rest: list[str]) -> dict[str, float]:
    """The figures of one side, from a process of its own."""
    command = [sys.executable, __file__, "--side", side, *rest]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def better(name: str, a: float, b: float) -> float:
    """The better of two rounds."""
    return max(a, b) if "tokens/s" in name else min(a, b)


def main() -> None:
    """Runs the sides in turns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Hugging Face folder in 16 bits")
    parser.add_argument("--dtype", default="bfloat16", help="of inputs: bfloat16 or float32")
    parser.add_argument("--compute", help="bitsmith's compute_dtype: int8 rounds inputs to 8 bits")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="of each step in a process")
    parser.add_argument("--turns", type=int, default=2, help="processes of each side")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return worker(arguments)
    rest = ["--dtype", arguments.dtype, "--threads", str(arguments.threads), "--tokens", str(arguments.tokens)]
    rest += ["--rounds", str(arguments.rounds)]
    rest += ["--model", str(Path(arguments.model).resolve())] if arguments.model else []
    rest += ["--compute", arguments.compute] if arguments.compute else []
    found: dict[str, dict[str, float]] = {}
    for _ in range(arguments.turns):
        for side in SIDES:
            old = found.get(side, {})
            found[side] = {n: better(n, v, old.get(n, v)) for n, v in ask(side, rest).items()}
    if arguments.json:
        print(json.dumps(found, indent=2))
        return None
    print(f"{'':24}{''.join(f'{side:>14}' for side in SIDES)}{'ratio':>9}")
    for name, own in found["bitsmith"].items():
        peer = found["bitsandbytes"][name]
        ratio = own / peer if "tokens/s" in name else peer / own
        print(f"{name:24}{''.join(f'{found[side][name]:14.2f}' for side in SIDES)}{ratio:8.2f}x")
    return None


if __name__ == "__main__":
    main()
