"""Memory that GPTQ takes on a GPU, phase by phase, from the shapes of a model's matrices.

One block lies there in float32 twice, as it was and rounded, with the Hessian of one input and what is made of it.
Hidden states, and the other blocks, lie in the host's memory. The numbers add up the tensors of `bitsmith.calibration`
that are alive together; no GPU was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bitsmith.calibration.accelerator import COPIES, LEAST_ROWS, rows_within
from bitsmith.calibration.pieces import BATCH_TOKENS
from bitsmith.calibration.stats import MOST_GRAMS
from bitsmith.planner.network import Network
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.category import layer_of

KERNELS = 700_000_000  # bytes of CUDA's context, kernels, workspaces of libraries, and fragments; a guess
_FLOATS = 4  # bytes


@dataclass(frozen=True)
class Phase:
    """What is alive together. nbytes: bytes on the device"""

    name: str
    nbytes: int


@dataclass(frozen=True)
class Calibrating:
    """GPTQ with corrected weights on one GPU.

    room: bytes that a program can take there
    peak: the phase that takes most, with as few rows at a time as are useful
    rows: rows of the widest matrix that are rounded together within the room
    ahead: whether the next block has room on the device, beside the peak; else it waits in the host's memory
    """

    room: int
    peak: Phase
    rows: int
    ahead: bool

    @property
    def fits(self) -> bool:
        """Whether the peak fits the room."""
        return self.peak.nbytes <= self.room

    @property
    def text(self) -> str:
        """The same in a line."""
        most = f"{self.peak.nbytes / 1e9:.1f} GB at the peak ({self.peak.name})"
        if not self.fits:
            return f"calibrating with GPTQ takes {most}: too much for one device; the CPU rounds what does not fit"
        where = "lies on the device" if self.ahead else "waits in the host's memory"
        return f"calibrating with GPTQ takes {most}, {self.rows:,} rows at a time; the next block {where}"


def calibrating_on(network: Network, room: int) -> Calibrating | None:
    """What GPTQ takes of a device with so many bytes; None if the model's matrices are not known by layers."""
    layers = list({tuple(sorted(block.items())): block for block in _blocks(network).values()}.values())
    if not layers:
        return None
    two = 2 * max(_bytes(block) for block in layers)
    phases = [phase for block in layers for phase in _phases(network, block, two)]
    peak = max(phases, key=lambda phase: phase.nbytes)
    widest = max(cols for block in layers for _, _, cols in block.values())
    corrected = max(_corrected(block, cols) for block in layers for _, _, cols in block.values() if cols == widest)
    held = KERNELS + two + 3 * _FLOATS * widest * widest + corrected
    return Calibrating(room, peak, rows_within(room - held, widest), peak.nbytes + two // 2 <= room)


Block = Mapping[str, tuple[int, int, int]]  # name -> number of matrices, their rows and columns


def _blocks(network: Network) -> dict[int, Block]:
    """The matrices of each layer that are rounded."""
    found: dict[int, dict[str, tuple[int, int, int]]] = {}
    for tensor in network.tensors:
        layer = layer_of(tensor.name)
        if layer >= 0 and _rounded(tensor):
            count = tensor.shape[0] if len(tensor.shape) > 2 else 1
            rows = tensor.rows // count if len(tensor.shape) > 2 else tensor.rows
            name = tensor.name.split(".", 2)[-1].removesuffix(".weight")
            found.setdefault(layer, {})[name] = count, rows, tensor.cols
    return dict(found)


def _rounded(tensor: TensorInfo) -> bool:
    apart = ("norm", "gate_inp", "conv", "sinks")
    return len(tensor.shape) > 1 and tensor.name.endswith(".weight") and not any(each in tensor.name for each in apart)


def _bytes(block: Block) -> int:
    return _FLOATS * sum(count * rows * cols for count, rows, cols in block.values())


def _corrected(block: Block, cols: int) -> int:
    """Bytes of the corrected matrices with so many columns; they may share an input, and then lie there together."""
    those = [rows for count, rows, own in block.values() if own == cols and count == 1]
    return _FLOATS * cols * (sum(those) + 2 * max(those, default=0))


def _phases(network: Network, block: Block, two: int) -> Iterator[Phase]:
    """The phases of each input. two: bytes of the original block and the rounded one"""
    held = KERNELS + two
    inner = max(max(rows, cols) for _, rows, cols in block.values())
    batch = _FLOATS * BATCH_TOKENS * (4 * inner + 6 * network.hidden)
    for name, (count, rows, cols) in block.items():
        gram = _FLOATS * cols * cols
        both = gram if count > 1 else 2 * gram  # the Hessian and the drift; experts have none
        summed = max(gram, min(MOST_GRAMS, count * gram)) if count > 1 else both
        yield Phase(f"statistics for {name}", held + summed + batch)
        yield Phase(f"order of columns of {name}", held + both + 2 * gram)  # what is left, and what comes next
        moves = gram if rows > cols and count == 1 else 0
        if moves:
            yield Phase(f"correction of {name}", held + both + gram + 3 * gram)
        slab = COPIES * _FLOATS * min(rows, LEAST_ROWS) * cols
        yield Phase(f"rounding of {name}", held + both + gram + moves + _corrected(block, cols) + slab)
