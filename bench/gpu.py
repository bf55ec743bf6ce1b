"""Everything that runs on a GPU, measured in under ten minutes, for a GPU that is lent for a short time.

    python bench/gpu.py --out gpu.json [--model FOLDER] [--text calibration.txt] [--peer-python PYTHON]
    TRITON_INTERPRET=1 python bench/gpu.py --device cpu --small        a dry run without a GPU: that the script works

Each part is a process of its own with a limit of time, the most important first. What a part found is in the JSON file
as soon as it ends; one that fails or takes too long leaves its error there, and the others go on. Seconds are those of
the wall, and memory is what torch took of the device at most.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
MARK = "result: "  # before the line of a part that its parent reads
Found = dict[str, Any]


@dataclass(frozen=True)
class Given:
    """What a part runs with. work: a folder that all parts share"""

    device: str
    small: bool
    model: str
    text: str
    tokens: int
    context: int
    work: Path
    peer_python: str = ""

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device != "cpu"


def timed(given: Given, work: Callable[[], Any], rounds: int = 3) -> float:
    """Seconds of the fastest of some calls, after one that compiles kernels."""
    import torch

    def once() -> float:
        started = time.perf_counter()
        work()
        if given.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(1 if given.small else rounds))


def peak(given: Given) -> int | None:
    """Bytes that torch took of the device at most."""
    import torch

    return int(torch.cuda.max_memory_allocated()) if given.cuda else None


def device(given: Given) -> Found:
    """What the device is, and its rates of products, in products a second."""
    import torch

    size = 64 if given.small else 8192
    found: Found = {"torch": torch.__version__, "name": "cpu"}
    if given.cuda:
        own = torch.cuda.get_device_properties(0)
        found |= {"name": own.name, "memory": own.total_memory, "capability": torch.cuda.get_device_capability()}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(size, size, device=given.device).to(dtype)
        found[str(dtype).removeprefix("torch.")] = size**3 / timed(given, lambda x=x: x @ x)  # type: ignore[misc]
    return found


def _problem(given: Given, rows: int, cols: int) -> tuple[Any, Any]:
    """Weights, and inputs whose columns depend on each other and differ in size."""
    import torch

    torch.manual_seed(0)
    x = torch.randn(2 * cols, cols, device=given.device)
    x += 0.5 * x[:, torch.randperm(cols, device=given.device)]
    x *= torch.exp(0.5 * torch.randn(cols, device=given.device))
    return 0.02 * torch.randn(rows, cols, device=given.device), x


def same_codes(given: Given) -> Found:
    """Triton's kernels beside the code on torch tensors, on the device itself: share of codes that differ, errors."""
    import torch

    from bitsmith.system.accelerators import runs_triton

    if not runs_triton(torch.device(given.device)):
        return {"skipped": "Triton does not run here"}
    from bitsmith.calibration.triton_grams import add_rounded
    from bitsmith.quant.formats import get_format
    from bitsmith.quant.rounders import gptq, hessian, triton_pivots
    from bitsmith.quant.rounders.triton_slab import TritonSlab

    rows, cols = (8, 64) if given.small else (512, 1024)
    w, x = _problem(given, rows, cols)
    factor = hessian.prepare(x.T @ x / len(x), order="activation")
    found: Found = {}
    group = 32 if given.small else 128
    for name in (f"int4-g{group}", f"int3-g{group}-asym", "nf4", "int8-channel", *(() if given.small else ("q4_k",))):
        format, how = get_format(name), gptq._Sweeps(1, True)
        slab = TritonSlab.of(w, factor)
        assert slab is not None
        own, wanted = gptq._by_slab(w, slab, format, factor, how)[1], gptq._by_torch(w, format, factor, how)[1]
        differing = float((own.codes != wanted.codes).float().mean())
        found[name] = {"differing": differing, "error": float(own.error.sum() / wanted.error.sum()) - 1.0}
    gram = torch.zeros(cols, cols, device=given.device)
    add_rounded(gram, None, x, None)
    wide = x.bfloat16().double()
    exact = torch.triu(wide.T @ wide)
    found["gram"] = float((torch.triu(gram).double() - exact).abs().max() / exact.abs().max())
    h, mean = factor.hessian, float(factor.diagonal.mean())
    ridge = factor.added.clamp(min=0.01 * mean)
    order = triton_pivots.pivoted(h, ridge, 1e-4 * mean)
    assert order is not None
    found["order"] = float((order != hessian._pivoted_by_torch(h, factor.added, ridge, mean)).float().mean())
    return found


def rounding(given: Given) -> Found:
    """Seconds of the steps of GPTQ for the largest matrix of a model of 8 B: 4,096 x 14,336."""
    from bitsmith.quant.formats import get_format
    from bitsmith.quant.rounders import gptq, hessian, triton_slab

    rows, cols = (8, 64) if given.small else (4096, 14336)
    w, x = _problem(given, rows, cols)
    gram = x.T @ x / len(x)
    added = (0.03 * gram.diagonal().mean()).expand(cols).contiguous()
    found: Found = {"order": timed(given, lambda: hessian._pivoted(gram, added), 1)}
    order = hessian._by_activation(gram, added)
    found["factor"] = timed(given, lambda: hessian._factored(gram, order, added, gram.dtype), 1)
    factor = hessian.prepare(gram)
    format = get_format("int4-g32" if given.small else "int4-g128")
    found["fit"] = timed(given, lambda: format.fit(w, factor.importance), 1)
    for sweeps in (0, 3):
        found[f"{sweeps} sweeps"] = timed(given, lambda n=sweeps: gptq.gptq_rows(w, format, factor, sweeps=n), 1)  # type: ignore[misc]
    for rows_each in () if given.small else (8, 16, 32):
        triton_slab._ROWS = rows_each
        found[f"pass, {rows_each} rows a program"] = timed(
            given, lambda: gptq.gptq_rows(w, format, factor, sweeps=0), 1
        )
    return {**found, "peak": peak(given)}


def hessians(given: Given) -> Found:
    """X^T X of 2,048 tokens: products a second, in float32 by torch and of bfloat16 by Triton."""
    from bitsmith.calibration.grams import GramSum

    found: Found = {}
    for cols in (32,) if given.small else (4096, 14336):
        _, x = _problem(given, 1, cols)
        x = x[:2048].contiguous()
        for rounded in (False, True):
            name = f"{cols} {'bfloat16' if rounded else 'float32'}"
            found[name] = len(x) * cols**2 / timed(given, lambda x=x, r=rounded: GramSum(rounded=r).add(x, x))  # type: ignore[misc]
    return found


def _quantized(given: Given, name: str, **how: Any) -> Found:
    import bitsmith

    out = given.work / name
    started = time.perf_counter()
    made = bitsmith.quantize(
        given.model,
        out=out,
        calibration=given.text,
        calibration_tokens=given.tokens,
        calibration_context=given.context,
        device=given.device,
        force=True,
        **how,
    )
    return {"seconds": time.perf_counter() - started, "peak": peak(given), "notes": [str(note) for note in made.notes]}


def gptq_fast(given: Given) -> Found:
    """GPTQ as published."""
    return _quantized(given, "fast", to=_scheme(given, 4), method="gptq", effort="fast")


def gptq_normal(given: Given) -> Found:
    """GPTQ with corrected weights and three sweeps."""
    return _quantized(given, "normal", to=_scheme(given, 4), method="gptq", effort="fast" if given.small else "normal")


def awq(given: Given) -> Found:
    """AWQ."""
    return _quantized(given, "awq", to=_scheme(given, 4), method="awq")


def learned(given: Given) -> Found:
    """Learned rounding: 50 steps a block, so that it fits the time."""
    return _quantized(given, "learned", to=_scheme(given, 3), method="learned", effort="fast")


def _scheme(given: Given, bits: int) -> str:
    return f"native/int{bits}-g32" if given.small else f"native/int{bits}-g64"


def imatrix(given: Given) -> Found:
    """An importance file."""
    import bitsmith

    started = time.perf_counter()
    bitsmith.imatrix(
        given.model,
        out=given.work / "found.gguf",
        calibration=given.text,
        calibration_tokens=given.tokens,
        calibration_context=given.context,
        device=given.device,
        force=True,
    )
    return {"seconds": time.perf_counter() - started, "peak": peak(given)}


def products(given: Given) -> Found:
    """Products with stored matrices, as bytes of weights a second, beside bfloat16 matrices of torch."""
    import torch

    from bitsmith.quant.formats import get_format
    from bitsmith.torch_modules.stored_weight import StoredWeight

    rows, cols = (32, 128) if given.small else (14336, 4096)
    dense = torch.randn(rows, cols)
    plain = dense.to(given.device, torch.bfloat16)
    found: Found = {}
    for name in ("nf4", "int4-g64", "int8-g32"):
        stored = StoredWeight.quantized(dense, get_format(name), "w").to(given.device)
        for count in (1, 16, 256):
            x = torch.randn(count, cols, device=given.device, dtype=torch.bfloat16)
            seconds = timed(given, lambda x=x, s=stored: s.multiply(x), 20)  # type: ignore[misc]
            found[f"{name} {count}"] = {"seconds": seconds, "bytes/s": stored.nbytes / seconds}
            found[f"bfloat16 {count}"] = {"seconds": timed(given, lambda x=x: x @ plain.T, 20)}  # type: ignore[misc]
    return found


def qlora(given: Given) -> Found:
    """Steps of an adapter over a base in NF4."""
    import bitsmith

    data = given.work / "data.jsonl"
    text = (
        Path(given.text).read_text(encoding="utf-8")
        if given.text != "default"
        else "One of many lines of text.\n" * 400
    )
    pieces = [text[at : at + 2000] for at in range(0, min(len(text), 400_000), 2000)]
    data.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")
    steps = 2 if given.small else 20
    started = time.perf_counter()
    bitsmith.tune_qlora(
        given.model,
        data=[str(data)],
        out=given.work / "adapter",
        steps=steps,
        batch=1,
        accumulate=1,
        context=given.context,
        device=given.device,
        force=True,
    )
    return {"seconds": time.perf_counter() - started, "steps": steps, "peak": peak(given)}


def losses(given: Given) -> Found:
    """Mean KLD of the files that were made, on the built-in held-out text; on the CPU."""
    import bitsmith

    found: Found = {}
    for name in ("fast", "normal", "awq", "learned"):
        if (given.work / name).exists():
            windows = 2 if given.small else 16
            measured = bitsmith.evaluate(given.work / name, against=given.model, max_windows=windows)
            found[name] = measured.to_dict()["divergence"]
    return found


def peer(given: Given) -> Found:
    """llm-compressor's GPTQ on the same tokens."""
    if not given.peer_python:
        return {"skipped": "no --peer-python"}
    import bitsmith

    folder = str(bitsmith.inspect(given.model).path)
    command = [given.peer_python, str(PEERS / "llmcompressor_driver.py"), folder, str(given.work / "peer")]
    command += ["--method", "gptq", "--calibration", given.text, "--tokens", str(given.tokens)]
    started = time.perf_counter()
    subprocess.run([*command, "--context", str(given.context)], check=True, capture_output=True)
    return {"seconds": time.perf_counter() - started}


PARTS: dict[str, tuple[Callable[[Given], Found], int]] = {  # with the most seconds of each
    "device": (device, 30),
    "same codes": (same_codes, 70),
    "rounding": (rounding, 60),
    "gptq normal": (gptq_normal, 90),
    "gptq fast": (gptq_fast, 60),
    "learned": (learned, 80),
    "hessians": (hessians, 30),
    "awq": (awq, 60),
    "imatrix": (imatrix, 40),
    "products": (products, 40),
    "qlora": (qlora, 60),
    "llm-compressor": (peer, 120),
    "losses": (losses, 60),
}


def run_part(name: str, words: list[str], limit: float) -> Found:
    """What a part found in a process of its own, or its error."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--part", name, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(limit, 1), check=False)
    except subprocess.TimeoutExpired:
        return {"part": name, "error": f"it took more than {limit:.0f} s", "wall": time.monotonic() - started}
    said = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    wall = time.monotonic() - started
    if done.returncode or not said:
        said_last = (done.stderr or done.stdout)[-1500:]
        return {"part": name, "error": f"exit code {done.returncode}: {said_last}", "wall": wall}
    return {"part": name, "found": json.loads(said[-1].removeprefix(MARK)), "wall": wall}


def made_model(args: argparse.Namespace, work: Path) -> str:
    """The model: a small one with random weights for a dry run."""
    if not args.small:
        return str(args.model)
    from shapes import Shape, write_checkpoint

    folder = work / "small"
    if not folder.exists():
        write_checkpoint(Shape(layers=1, hidden=64, intermediate=128, vocab=4096, heads=2, kv_heads=1), folder, 0)
    return str(folder)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: a dry run")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--text", default="default", help="UTF-8 text to calibrate on")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=570, help="for all parts together (default: 570)")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="repeatable")
    parser.add_argument("--out", type=Path, help="JSON file (default: print it)")
    parser.add_argument("--work", type=Path, help="folder for files (default: a temporary one)")
    parser.add_argument("--peer-python", default="", metavar="PATH", help="a Python that has llmcompressor")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    return parser.parse_args()


def given_by(args: argparse.Namespace, work: Path) -> Given:
    """What a part runs with."""
    tokens, context = (256, 64) if args.small else (args.tokens, args.context)
    return Given(args.device, args.small, made_model(args, work), args.text, tokens, context, work, args.peer_python)


def main() -> None:
    """Run all parts, or be one of them."""
    args = arguments()
    if args.part:
        print(MARK + json.dumps(PARTS[args.part][0](given_by(args, args.work))))
        return
    words = ["--device", args.device, *(["--small"] if args.small else []), "--model", args.model]
    words += ["--text", args.text, "--tokens", str(args.tokens), "--context", str(args.context)]
    words += ["--peer-python", args.peer_python] if args.peer_python else []
    found: list[Found] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        made_model(args, work)
        for name in args.only or PARTS:
            left = args.seconds - (time.monotonic() - started)
            limit = min(left, PARTS[name][1] * (10 if args.small else 1))
            part: Found = {"part": name, "error": "no time was left"}
            if left > 5:
                part = run_part(name, [*words, "--work", str(work)], limit)
            found.append(part)
            print(f"{name}: {part.get('error') or json.dumps(part['found'])}", file=sys.stderr, flush=True)
            if args.out:
                args.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if not args.out:
        print(json.dumps(found, indent=1))
    sys.exit(any("error" in part for part in found))


if __name__ == "__main__":
    main()
