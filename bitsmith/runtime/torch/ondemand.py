"""The linear for models whose dense form does not fit memory: packed bytes, decoded by slabs for each call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.torch.dense import SLAB_WEIGHTS, slabs

_GAP = 32  # rows between two wanted ones that are read too: a further read costs more


def _runs(rows: list[int], most: int) -> list[list[int]]:
    """Ascending row numbers, cut where many rows lie between two of them, and so that no run spans more than `most`."""
    runs: list[list[int]] = []
    for row in rows:
        if not runs or row - runs[-1][-1] > _GAP or row - runs[-1][0] >= most:
            runs.append([])
        runs[-1].append(row)
    return runs


@dataclass(frozen=True)
class OnDemandKernel:
    """Nothing is kept but the way to the file: its packed bytes stay in the system's page cache while there is
    room. Every product reads and decodes the matrix once, a slab of 16 MB of float32 at a time, so it is slow;
    results equal the dense float32 kernel's up to the order of summation.
    """

    device: str = "cpu"

    def supports(self, layout: str, device: str) -> bool:
        """Everything that can be decoded, on every torch device."""
        return True

    def prepare(self, weight: Weight) -> Weight:
        """The weight itself."""
        return weight

    def linear(self, x: Tensor, prepared: Weight) -> Tensor:
        """float32 [..., cols] -> float32 [..., rows]."""
        rows, cols = prepared.info.rows, prepared.info.cols
        out = torch.empty((*x.shape[:-1], rows), dtype=torch.float32, device=x.device)
        for start, stop in slabs(rows, cols):
            out[..., start:stop] = x @ torch.as_tensor(prepared.rows(start, stop)).to(x.device).T
        return out

    def gather(self, prepared: Weight, ids: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., cols]; each different row is read once, with the few rows between them."""
        unique, places = torch.unique(ids, return_inverse=True)
        rows = []
        for run in _runs(unique.tolist(), max(1, SLAB_WEIGHTS // max(1, prepared.info.cols))):
            read = torch.as_tensor(prepared.rows(run[0], run[-1] + 1))
            rows.append(read[torch.tensor(run) - run[0]])
        return torch.cat(rows).to(ids.device)[places]

    def nbytes(self, prepared: Weight) -> int:
        """Packed bytes, from the page cache."""
        return prepared.info.nbytes
