"""Packed codes of the native container, unpacked on any device; see `quant.bits`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from bitsmith.containers.patterns import from_patterns
from bitsmith.errors import TensorError
from bitsmith.quant.formats import get_format
from bitsmith.quant.formats.base import Format


def unpacked(packed: Tensor, format: Format, cols: int) -> Tensor:
    """uint8 [rows, bytes per row] -> codes uint8 [rows, cols]."""
    bits = format.bits
    if bits == 8:
        found = packed
    else:
        groups = -(-cols // 8)
        filled = torch.nn.functional.pad(packed, (0, groups * bits - packed.shape[1]))
        eights = filled.reshape(packed.shape[0], groups, bits)
        parts = []
        for i in range(8):
            byte, shift = divmod(i * bits, 8)
            code = eights[:, :, byte] >> shift
            if shift + bits > 8:
                code = code | eights[:, :, byte + 1] << (8 - shift)
            parts.append(code & ((1 << bits) - 1))
        found = torch.stack(parts, dim=2).reshape(packed.shape[0], -1)[:, :cols]
    table = _codes_of_patterns(format.name)
    return found if table is None else torch.from_numpy(table).to(packed.device)[found.long()]


@lru_cache
def _codes_of_patterns(name: str) -> np.ndarray | None:
    """The code of each stored pattern, uint8 [2**bits]; None where they are the same. NaN gets the first code."""
    format = get_format(name)
    table = np.zeros(1 << format.bits, np.uint8)
    for pattern in range(1 << format.bits):
        try:
            table[pattern] = from_patterns(np.array([[pattern]], np.uint8), format)[0, 0]
        except TensorError:
            continue
    return None if bool((table == np.arange(1 << format.bits)).all()) else table
