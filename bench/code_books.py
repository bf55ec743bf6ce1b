"""Hold the search in code books against llama.cpp's `ggml_quantize_chunk`: squared error, and processor time a weight.

    python bench/code_books.py [--rows 128] [--cols 1024]

Gaussian weights, one thread, with importance from a gamma distribution and without. llama.cpp needs importance for
most of these types, so that ones stand for none. Its tables are made before its time is taken.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from bitsmith.containers.gguf.blocks import CODECS, decode_rows
from bitsmith.containers.gguf.core_blocks import encode_stored
from bitsmith.quant.formats.code_books import CODE_BOOKS
from bitsmith.quant.scale_search import column_weights
from tests.oracle import ggml


def compare(name: str, w: np.ndarray, importance: np.ndarray | None) -> None:
    """Print one line."""
    cols = w.shape[1]
    start = time.process_time()
    ours = encode_stored(CODECS[name], "f32", w.view(np.uint8), importance=importance)
    between = time.process_time()
    assert ours is not None, "the C++ core is missing"
    theirs = ggml.quantize(name, w, np.ones(cols, np.float32) if importance is None else importance)
    end = time.process_time()
    weights = np.ones(cols) if importance is None else column_weights(importance)
    lost = [float((np.square(decode_rows(name, data, cols) - w) * weights).sum()) for data in (ours.data, theirs)]
    times = [1e9 * seconds / w.size for seconds in (between - start, end - between)]
    label = "weighted" if importance is not None else "plain"
    print(
        f"{name:8} {label:8} error {lost[0] / lost[1]:.3f} of theirs; ns a weight {times[0]:.0f}, theirs {times[1]:.0f}"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--cols", type=int, default=1024)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    w = (0.02 * rng.standard_normal((args.rows, args.cols))).astype(np.float32)
    importance = rng.gamma(1.0, 1.0, args.cols).astype(np.float32)
    for format in CODE_BOOKS:
        ggml.quantize(format.name, w[:1], importance)
        compare(format.name, w, None)
        compare(format.name, w, importance)


if __name__ == "__main__":
    main()
