"""What `bitsmith run` takes in memory, beside what `bitsmith plan` says.

    python bench/plan.py                 # fit the two constants, then check on models that the fit did not see
    python bench/plan.py --json

Models are GGUF files of real shapes whose weights are a hole in the file, so that they cost no disk: what is read, kept
and computed is the same for zeros. Each is run in a process of its own with a prompt that fills the context. The fit is
least squares over FIT; CHECK holds the reference model and the shape of TinyLlama-1.1B.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bitsmith.containers.gguf.types import TYPES
from bitsmith.containers.gguf.writer import gguf_layout
from bitsmith.models.arch.config import ModelConfig, Rope
from bitsmith.models.arch.gguf_config import config_to_gguf
from bitsmith.models.arch.tensors import expected_tensors
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.models.tokenizer.from_hf import read_tokenizer
from bitsmith.models.tokenizer.to_gguf import vocabulary_keys
from bitsmith.planner import own_memory
from bitsmith.planner.model_spec import find_model
from bitsmith.planner.weights import as_it_is
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.choose import choose_types
from bitsmith.recipe.shape import ModelShape

MB = 1_000_000
_COMMON = {"arch": "llama", "context": 8192, "norm_eps": 1e-5, "rope": Rope(dim=64)}


def shape(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocab: int) -> ModelConfig:
    """A Llama with heads of 64."""
    return ModelConfig(
        layers=layers,
        hidden=hidden,
        intermediate=inner,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=64,
        vocab=vocab,
        **_COMMON,  # type: ignore[arg-type]
    )


SHAPES = {
    "small": shape(4, 512, 1408, 8, 4, 4096),
    "wide": shape(3, 2048, 8192, 32, 8, 16000),
    "words": shape(2, 1024, 2816, 16, 16, 100000),
    "deep": shape(24, 1024, 2816, 16, 4, 32000),
    "1.1b": shape(22, 2048, 5632, 32, 4, 32000),
}
FIT = [
    (name, mix, context)
    for name in ("small", "wide", "words", "deep")
    for mix in ("q8_0", "q4_k_m", "f16")
    for context in (256, 1500)
]
CHECK = [
    (name, mix, context)
    for name, contexts in (("reference", (256, 1000)), ("1.1b", (512, 2048)))
    for mix in ("q8_0", "q4_k_m", "f16")
    for context in contexts
]


@dataclass(frozen=True)
class Peak:
    """One run: bytes predicted and measured."""

    model: str
    type: str
    context: int
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """Of the prediction, relative."""
        return self.predicted / self.measured - 1


def hollow(config: ModelConfig, mix: str, path: Path) -> Path:
    """A GGUF file of a shape in a mix, its weights a hole."""
    reference = open_checkpoint("reference")
    assert reference.folder is not None
    infos = [TensorInfo(name, dims, "f32", 0) for name, dims in expected_tensors(config).items()]
    choices = choose_types(mix, ModelShape.from_config(config), infos).choices
    made = [
        replace(info, layout=choice.type, nbytes=TYPES[choice.type].row_bytes(info.cols) * info.rows)
        for info, choice in zip(infos, choices, strict=True)
    ]
    vocabulary = read_tokenizer(reference.folder, pre=None, vocab_size=config.vocab)
    keys = {**config_to_gguf(config, name=path.stem), **vocabulary_keys(vocabulary)}
    (layout,) = gguf_layout(path.name, keys, made)
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
    return path


RUN = """
import atexit, sys
from bitsmith.cli import main
from bitsmith.system.machine import peak_memory
atexit.register(lambda: print("peak", peak_memory(), file=sys.stderr))
main()
"""


def measured_peak(model: Path | str, context: int) -> int:
    """Peak memory of `bitsmith run` with a prompt that fills `context` tokens but for one, in bytes."""
    command = [sys.executable, "-c", RUN, "run", str(model), "--raw", "--max-tokens", "2", "--seed", "1"]
    done = subprocess.run(command, input=prompt_of(model, context - 1), capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"bitsmith run {model} failed: {done.stderr.decode()}")
    return int(done.stderr.split()[-1])


def prompt_of(model: Path | str, tokens: int) -> bytes:
    """A text of so many tokens, the start token included."""
    tokenizer = open_checkpoint(model).tokenizer()
    text = "word " * tokens
    ids = tokenizer.encode(text, add_special=True)[:tokens]
    text = tokenizer.decode(ids)
    while len(tokenizer.encode(text, add_special=True)) < tokens:
        text += " a"
    return text.encode()


def predicted_peak(model: Path | str, context: int) -> int:
    """What the plan says of the same."""
    network = find_model(model, scratch=Path()).network
    weights = own_memory.weight_memory(network, as_it_is(network))
    return (
        weights + own_memory.own_cache(network, context, batch=1, bits=16) + own_memory.working_memory(network, context)
    )


def peaks(points: Iterable[tuple[str, str, int]], folder: Path) -> list[Peak]:
    """Run every point."""
    found = []
    for name, mix, context in points:
        path = folder / f"{name}-{mix}.gguf"
        if not path.exists():
            hollow(open_checkpoint("reference").config if name == "reference" else SHAPES[name], mix, path)
        found.append(Peak(name, mix, context, predicted_peak(path, context), measured_peak(path, context)))
        print(f"{name} {mix} {context}: {found[-1].error:+.1%}", file=sys.stderr, flush=True)
    return found


def fit(points: list[Peak], vocabularies: list[int]) -> tuple[float, float]:
    """BASE and TOKEN by least squares of relative errors."""
    known = [own_memory.BASE + own_memory.TOKEN * vocabulary for vocabulary in vocabularies]
    rest = np.array([p.measured - (p.predicted - k) for p, k in zip(points, known, strict=True)], np.float64)
    weights = 1 / np.array([p.measured for p in points], np.float64)
    columns = np.stack([np.ones(len(points)), np.array(vocabularies, np.float64)], axis=1)
    base, token = np.linalg.lstsq(columns * weights[:, None], rest * weights, rcond=None)[0]
    return float(base), float(token)


def show(title: str, found: list[Peak]) -> None:
    """One table."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for heading in ("model", "type", "context", "predicted MB", "measured MB", "error"):
        table.add_column(heading, justify="left" if heading in ("model", "type") else "right")
    for p in found:
        figures = (f"{p.predicted / MB:,.1f}", f"{p.measured / MB:,.1f}", f"{p.error:+.1%}")
        table.add_row(p.model, p.type, str(p.context), *figures)
    Console(highlight=False).print(table)


def main() -> None:
    """Measure, fit, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = peaks(FIT, Path(folder))
        base, token = fit(seen, [SHAPES[p.model].vocab for p in seen])
        checked = peaks(CHECK, Path(folder))
    if args.json:
        rows = {"fit": [asdict(p) for p in seen], "check": [asdict(p) for p in checked]}
        print(json.dumps({"base": base, "token": token, **rows}, indent=2))
        return
    show("seen by the fit", seen)
    print(
        f"least squares: BASE {base:,.0f}, TOKEN {token:,.1f}; the plan has {own_memory.BASE:,}, {own_memory.TOKEN}\n"
    )
    show("not seen", checked)


if __name__ == "__main__":
    main()
