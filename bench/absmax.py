"""Time to quantize a matrix to NF4, FP4 and row-wise int8, beside bitsandbytes on the same CPU.

    python bench/absmax.py [--rows 4096] [--cols 4096] [--repeat 5] [--threads 2]

Both read bfloat16 weights and give packed codes and absmax. The tools take turns; the least time of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

from bitsmith.containers.bnb_codecs import FourBitCodec, RowInt8Codec
from bitsmith.containers.core_parts import encode_parts
from bitsmith.quant.formats.fourbit import fp4, nf4


def ours(kind: str, data: np.ndarray, pool: ThreadPoolExecutor, threads: int) -> None:
    """One matrix, uint8 [rows, bytes], in slabs, as `bitsmith quantize` does it."""
    shape = (len(data), data.shape[1] // 2)
    codec = RowInt8Codec() if kind == "int8" else FourBitCodec({"nf4": nf4, "fp4": fp4}[kind]()).of_shape(shape)
    slabs = np.array_split(data, 4 * threads)
    if any(found is None for found in pool.map(lambda slab: encode_parts(codec, "bf16", slab), slabs)):
        raise SystemExit("the C++ core is missing; make core")


def theirs(kind: str, threads: int) -> Callable[[np.ndarray], None]:
    """The same by bitsandbytes."""
    import bitsandbytes as bnb
    import torch

    torch.set_num_threads(threads)

    def run(data: np.ndarray) -> None:
        w = torch.from_numpy(data.view(np.int16)).view(torch.bfloat16)
        if kind == "int8":
            bnb.nn.Int8Params(w, requires_grad=False, has_fp16_weights=False).to("cpu")
        else:
            bnb.functional.quantize_4bit(w, quant_type=kind)

    return run


def least(run: Callable[[], None], repeat: int) -> float:
    """The least of several times, in seconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print one line for each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 4096), ("cols", 4096), ("repeat", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    w = np.random.default_rng(0).standard_normal((args.rows, args.cols)).astype(ml_dtypes.bfloat16)
    data = w.view(np.uint8)
    print(f"{'format':8}{'bitsmith':>12}{'bitsandbytes':>14}{'ratio':>8}")
    with ThreadPoolExecutor(args.threads) as pool:
        for kind in ("nf4", "fp4", "int8"):
            mine = other = float("inf")
            peer = theirs(kind, args.threads)
            for _ in range(args.repeat):
                mine = min(mine, least(lambda kind=kind: ours(kind, data, pool, args.threads), 1))  # type: ignore[misc]
                other = min(other, least(lambda peer=peer: peer(data), 1))  # type: ignore[misc]
            print(f"{kind:8}{1e3 * mine:>9.1f} ms{1e3 * other:>11.1f} ms{other / mine:>8.1f}")


if __name__ == "__main__":
    main()
