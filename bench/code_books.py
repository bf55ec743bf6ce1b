"""Hold the search in code books against llama.cpp's `ggml_quantize_chunk`: squared error, and processor time a weight.

    python bench/code_books.py [--rows 128] [--cols 1024] [--rounds 5] [--model FILE --tensor NAME]

Gaussian weights or a matrix of a safetensors file, one thread, with importance from a gamma distribution and without.
llama.cpp needs importance for most of these types, so that ones stand for none. Both make their tables before times are
taken; then they take turns, and the fastest round of each counts.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
from safetensors import safe_open

from bitsmith.containers.gguf.blocks import CODECS, decode_rows
from bitsmith.containers.gguf.core_blocks import encode_stored
from bitsmith.quant.formats.code_books import CODE_BOOKS
from bitsmith.quant.scale_search import column_weights
from tests.oracle import ggml


def ours(name: str, w: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Blocks of the core's search."""
    encoded = encode_stored(CODECS[name], "f32", w.view(np.uint8), importance=importance)
    assert encoded is not None, "the C++ core is missing"
    return encoded.data


def theirs(name: str, w: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Blocks of `ggml_quantize_chunk`."""
    return ggml.quantize(name, w, np.ones(w.shape[1], np.float32) if importance is None else importance)


def compare(name: str, w: np.ndarray, importance: np.ndarray | None, rounds: int) -> None:
    """Print one line."""
    weights = np.ones(w.shape[1]) if importance is None else column_weights(importance)
    searches = ours, theirs
    lost, times = [0.0, 0.0], [math.inf, math.inf]
    for search in searches:
        search(name, w[:1], importance)
    for _ in range(rounds):
        for i, search in enumerate(searches):
            start = time.process_time()
            data = search(name, w, importance)
            times[i] = min(times[i], 1e9 * (time.process_time() - start) / w.size)
            lost[i] = float((np.square(decode_rows(name, data, w.shape[1]) - w) * weights).sum())
    label = "weighted" if importance is not None else "plain"
    print(
        f"{name:8} {label:8} error {lost[0] / lost[1]:.3f} of theirs; ns a weight {times[0]:.1f}, theirs "
        f"{times[1]:.0f}, {times[1] / times[0]:.1f} times",
        flush=True,
    )


def matrix(path: str, name: str) -> np.ndarray:
    """A float32 matrix of a safetensors file."""
    with safe_open(path, "pt") as file:
        return np.asarray(file.get_tensor(name).float())


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--cols", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", help="safetensors file")
    parser.add_argument("--tensor", default="model.layers.5.mlp.down_proj.weight")
    parser.add_argument("--only", default="", help="types, separated by commas")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    w = np.asarray(0.02 * rng.standard_normal((args.rows, args.cols)), np.float32)
    if args.model:
        w = np.ascontiguousarray(matrix(args.model, args.tensor)[: args.rows])
    importance = np.asarray(rng.gamma(1.0, 1.0, w.shape[1]), np.float32)
    for format in CODE_BOOKS:
        if args.only and format.name not in args.only.split(","):
            continue
        compare(format.name, w, None, args.rounds)
        compare(format.name, w, importance, args.rounds)


if __name__ == "__main__":
    main()
