"""Compiles the kernels of calibration for an NVIDIA GPU that need not be there, as a program."""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bitsmith.calibration import triton_grams
from bitsmith.quant.rounders import triton_columns as columns
from bitsmith.quant.rounders import triton_pivots

REALS = {"low", "high", "largest", "half", "top", "least"}
NUMBERS = {"rows", "first", "count", "block", "step", "size", "tokens", "cols"}
INTEGERS = {"order", "places", "chosen", "failed"}


def kernels() -> list[tuple[Any, dict[str, Any], int]]:
    """Kernels with their constants, and their warps."""
    found: list[tuple[Any, dict[str, Any], int]] = []
    for descends, wide, bits in ((False, 128, 0), (True, 256, 0), (True, 128, 4), (False, 128, 8)):
        own = {"COLUMNS": wide, "ROWS": 16, "DESCENDS": descends, "OFFSETS": not bits, "BITS": bits}
        found.append((columns.choose_columns, own, 4))
    sizes = {"COLUMNS": 64, "ROWS": 16}
    found.append((columns.refit_affine, {"OFFSETS": True, "STORED": 2, **sizes}, 4))
    found.append((columns.move, {"OFFSETS": True, **sizes}, 4))
    found.append((columns.moments, sizes, 4))
    found.append((triton_pivots._pivot, {"PARTS": 64, "WIDTH": 256, "DEPTH": 16}, 4))
    for drift in (False, True):
        tile = {"TILE": 128, "TOKENS": 32, "DRIFT": drift, "HALVES": True}
        found.append((triton_grams._add_products, tile, 8))
    return found


def kind(name: str, constants: dict[str, Any]) -> str:
    """The type of an argument in a signature."""
    if name in constants:
        return "constexpr"
    if name in NUMBERS:
        return "i32"
    return "fp32" if name in REALS else "*i32" if name in INTEGERS else "*fp32"


def main(capability: int) -> None:
    """Compile all of them."""
    for kernel, constants, warps in kernels():
        names = list(kernel.arg_names)
        signature = {name: kind(name, constants) for name in names}
        places = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        assert made.asm["cubin"]
        assert "st.local" not in made.asm["ptx"], kernel.__name__
    print("compiled", len(kernels()))


if __name__ == "__main__":
    main(int(sys.argv[1]))
