"""Makes a mixture of experts with real structure from the reference model, and measures rounding methods on it.

    python bench/experts.py make FOLDER
    python bench/experts.py measure FOLDER --results table.jsonl
    python bench/experts.py measure FOLDER --only 'q2_k'

`make` needs no network. The inputs of each MLP are clustered; each cluster becomes an expert with the half of the MLP's
neurons that work most on it, and its centre becomes a row of the router. Routers and experts are then trained to give
the reference model's logits on Python's own documentation. The result is a Mixtral folder.

`measure` quantizes the folder by every method to every format, calibrated on the built-in text, and shows the mean KLD
from the folder on the built-in evaluation text.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn import functional

import bitsmith
from bitsmith.calibration.collect import RecordedLinear
from bitsmith.calibration.inputs import input_of
from bitsmith.models.arch.config import Experts
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.reference.texts import calibration_text
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.model import load_torch_model
from bitsmith.runtime.weights import Block, Linear

EXPERTS, USED, SHARE = 16, 2, 2  # experts of a layer, those of a token, and the MLP's width over an expert's
CONTEXT, BATCH = 256, 4
CLUSTERED = 96  # windows whose MLP inputs are clustered
BALANCE = 0.02  # weight of the loss that spreads tokens over experts (Shazeer et al. 2017)
FORMATS = ("native/int4-g64", "native/int3-g64", "q4_k_m", "q2_k")
METHODS: dict[str, dict[str, Any]] = {
    "nearest": {},
    "nearest, weighted": {"calibration": "default", "method": "nearest"},
    "gptq": {"calibration": "default", "method": "gptq"},
    "gptq, all experts": {"calibration": "default", "method": "gptq", "calibration_all_experts": True},
}


# -- making


def texts() -> str:
    """The built-in calibration text, and the docstrings of Python's standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = [calibration_text()]
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("*/*.py")):
        if "site-packages" in path.parts or "test" in path.parts or path.parent.name == "pydoc_data":
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef
        found += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(text for text in found if len(text) > 200)


def windows_of(text: str, tokenizer: Any) -> np.ndarray:
    """Token ids int64 [windows, CONTEXT]."""
    ids = np.array(tokenizer.encode(text, add_special=False), np.int64)
    return ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)


def clustered(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centres of `count` clusters of rows by their angle, unit vectors [count, cols] (spherical k-means)."""
    unit = functional.normalize(x - x.mean(0), dim=-1)
    centres = unit[torch.randperm(len(unit), generator=generator)[:count]]
    for _ in range(20):
        own = (unit @ centres.T).argmax(-1)
        sums = torch.zeros_like(centres).index_add(0, own, unit)
        centres = functional.normalize(sums + 1e-3 * centres, dim=-1)
    return centres


def split(block: Block, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The router and the experts of one block, made of its MLP; x: inputs of the MLP [tokens, hidden]."""
    gate, up, down = (block.linears[f"ffn_{name}"].prepared for name in ("gate", "up", "down"))
    centres = clustered(x, EXPERTS, generator)
    own = ((x - x.mean(0)) @ centres.T).argmax(-1)
    inner = (functional.silu(x @ gate.T) * (x @ up.T)).abs() * down.norm(dim=0)
    made = {"ffn_gate_inp": 4.0 * centres / x.norm(dim=-1).mean()}
    for e in range(EXPERTS):
        work = inner[own == e].mean(0) if bool((own == e).any()) else inner.mean(0)
        kept = work.argsort(descending=True)[: len(work) // SHARE].sort().values
        made |= {f"ffn_gate_exps.{e}": gate[kept], f"ffn_up_exps.{e}": up[kept], f"ffn_down_exps.{e}": down[:, kept]}
    return made


@dataclass
class Student:
    """The decoder with experts, and its trainable tensors by layer and name."""

    decoder: Decoder
    tensors: list[dict[str, Tensor]]

    @classmethod
    def of(cls, teacher: Decoder, windows: np.ndarray) -> Student:
        """Experts made of the MLPs of `teacher`."""
        generator = torch.Generator().manual_seed(0)
        config, tensors, blocks = teacher.config, [], []
        x, place = teacher.embedded(windows), teacher.place(CONTEXT)
        for layer, block in enumerate(teacher.weights.blocks):
            inputs = input_of(teacher, layer, block, "ffn_in", x).reshape(-1, config.hidden)
            own = {name: values.clone() for name, values in split(block, inputs, generator).items()}
            linears = {name: each for name, each in block.linears.items() if not name.startswith("ffn_")}
            linears |= {name: Linear(DenseKernel(), values) for name, values in own.items()}
            x = teacher.run_block(layer, block, x, place)
            tensors.append(own)
            blocks.append(Block(block.norms, linears))
        experts = Experts(EXPERTS, USED, config.intermediate // SHARE)
        config = replace(config, arch="mixtral", experts=experts, intermediate=config.intermediate // SHARE)
        weights = replace(teacher.weights, blocks=tuple(blocks))
        return cls(Decoder(config, weights, teacher.ops), tensors)

    def run(self, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """Logits [windows, CONTEXT, vocab], and the loss that is least where all experts work alike."""
        x, place = self.decoder.embedded(ids), self.decoder.place(CONTEXT)
        uneven = torch.zeros(())
        for layer, block in enumerate(self.decoder.weights.blocks):
            inputs: list[Tensor] = []
            router = block.linears["ffn_gate_inp"]
            watched = {"ffn_gate_inp": RecordedLinear.watching(router, inputs.append)}
            x = self.decoder.run_block(layer, block.with_linears(watched), x, place)
            weights = router(inputs[0]).softmax(-1)
            chosen = weights.topk(USED, dim=-1).indices
            share = torch.bincount(chosen.reshape(-1), minlength=EXPERTS) / chosen.numel()
            uneven = uneven + EXPERTS * (share * weights.mean(0)).sum()
        return self.decoder.logits(x), uneven / len(self.tensors)


def train(student: Student, teacher: Decoder, windows: np.ndarray, steps: int) -> None:
    """Adam on the divergence from the teacher's logits."""
    trained = [tensor.requires_grad_(True) for layer in student.tensors for tensor in layer.values()]
    optimizer = torch.optim.Adam(trained, lr=1e-3, betas=(0.9, 0.99))
    draw = np.random.default_rng(0)
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1.0 - step / steps)
        ids = windows[draw.choice(len(windows), BATCH, replace=False)]
        with torch.no_grad():
            wanted = teacher.forward(ids).log_softmax(-1)
        logits, uneven = student.run(ids)
        loss = functional.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="sum") / ids.size
        optimizer.zero_grad()
        (loss + BALANCE * uneven).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if not step % 5:
            spent = time.monotonic() - started
            print(f"step {step}: KLD {loss.item():.4f}, imbalance {uneven.item():.3f}, {spent:.0f} s", flush=True)


def save(student: Student, source: Path, folder: Path) -> None:
    """A Mixtral folder in BF16."""
    checkpoint = open_checkpoint(source)
    rows = checkpoint.source.rows
    kept = {
        name: rows(name).reshape(info.shape) for name, info in checkpoint.source.tensors.items() if ".mlp." not in name
    }
    names = {"ffn_gate_exps": "w1", "ffn_up_exps": "w3", "ffn_down_exps": "w2"}
    for layer, own in enumerate(student.tensors):
        for name, values in own.items():
            stack, _, number = name.partition(".")
            part = f"experts.{number}.{names[stack]}" if number else "gate"
            kept[f"model.layers.{layer}.block_sparse_moe.{part}.weight"] = values.detach().numpy()
    folder.mkdir(parents=True, exist_ok=True)
    content = {name: np.ascontiguousarray(values).astype(ml_dtypes.bfloat16) for name, values in kept.items()}
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "sliding_window": None}
    config |= {"num_local_experts": EXPERTS, "num_experts_per_tok": USED}
    config["intermediate_size"] //= SHARE
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(source / name, folder / name)


def make(folder: Path, steps: int) -> None:
    """Make the model, and print its perplexity beside the reference model's."""
    source = Path(bitsmith.__file__).parent / "reference"
    checkpoint = open_checkpoint(source)
    teacher = load_torch_model(checkpoint, dense=True).decoder
    assert isinstance(teacher, Decoder)
    windows = windows_of(texts(), checkpoint.tokenizer())
    print(f"{windows.size:,} tokens", flush=True)
    with torch.no_grad():
        student = Student.of(teacher, windows[:CLUSTERED])
    train(student, teacher, windows, steps)
    save(student, source, folder)
    found = bitsmith.evaluate(folder, against="reference", context=CONTEXT)
    print(json.dumps(found.to_dict(), indent=2))


# -- measuring


def rows(only: str) -> Iterator[tuple[str, str]]:
    """Format and method of each row."""
    for to in FORMATS:
        yield from ((to, method) for method in METHODS if re.search(only, f"{to} {method}"))


def measure(folder: Path, only: str, tokens: int | None, results: Path | None) -> None:
    """Quantize and evaluate every row, and show the table."""
    table = Table("format", "method", "bits per weight", "mean KLD", "±", "same top-1", "seconds", box=None)
    with tempfile.TemporaryDirectory() as work:
        for to, method in rows(only):
            options = METHODS[method]
            if options:
                options = options | {"calibration_tokens": tokens}
            out = Path(work) / ("made" if "/" in to else "made.gguf")
            made = bitsmith.quantize(folder, to=to, out=out, device="cpu", force=True, **options)
            found = bitsmith.evaluate(made.out, against=folder, context=CONTEXT).to_dict()
            row = {"to": to, "method": method, "bits_per_weight": made.bits_per_weight, "seconds": made.seconds}
            row |= {"expected_seconds": made.expected_seconds, "notes": list(made.notes), "evaluation": found}
            if results is not None:
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            kld, top1 = (found["divergence"][key] for key in ("kld", "top1"))
            cells = (f"{kld['value']:.5f}", f"{kld['error']:.5f}", f"{100 * top1['value']:.1f} %")
            table.add_row(to, method, f"{made.bits_per_weight:.2f}", *cells, f"{made.seconds:.0f}")
            print(to, method, *cells, f"{made.seconds:.0f} s", file=sys.stderr, flush=True)
    Console().print(table)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("--steps", type=int, default=400)
    measuring = commands.add_parser("measure")
    measuring.add_argument("folder", type=Path)
    measuring.add_argument("--only", default="", help="regular expression of 'FORMAT METHOD'")
    measuring.add_argument("--tokens", type=int, help="of the calibration text; default: 128 windows of 512")
    measuring.add_argument("--results", type=Path, help="file to which rows are appended as JSON")
    args = parser.parse_args()
    if args.command == "make":
        make(args.folder, args.steps)
    else:
        measure(args.folder, args.only, args.tokens, args.results)


if __name__ == "__main__":
    main()
