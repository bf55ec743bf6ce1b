"""Importance of columns for `quantize --calibration`, from a statistics pass or from an importance file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.calibration.imatrix import Entry, Imatrix, read_imatrix, record_of
from bitsmith.calibration.work import own_name
from bitsmith.errors import FileError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.delta_sources import column_order
from bitsmith.models.arch.names import gguf_name, in_stack
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.calibration_record import CalibrationRecord

if TYPE_CHECKING:
    from bitsmith.calibration.collect import Calibration
    from bitsmith.models.checkpoint import Checkpoint
    from bitsmith.recipe.plan import PlannedTensor

_SHOWN = 3


@dataclass(frozen=True)
class Importance:
    """How much each column of a matrix counts.

    values: by GGUF tensor name, ".weight" included: float32 [matrices, cols], mean squared input. Only tensors of
        experts have several matrices. In tensors without an entry all columns count equally.
    record: its source
    unused: number of matrices of a tensor whose experts saw no token, if there are some; all their columns count
        equally
    """

    values: Mapping[str, np.ndarray]
    record: CalibrationRecord
    unused: Mapping[str, int] = field(default_factory=dict)

    def of(self, name: str) -> np.ndarray | None:
        """[matrices, cols] of a tensor by its GGUF name, or a Llama's Hugging Face name; None if unknown."""
        expert = in_stack(name)
        if expert is not None:
            stack = self.values.get(expert[0])
            return None if stack is None else stack.reshape(-1, stack.shape[-1])[expert[1] : expert[1] + 1]
        return self.values.get(gguf_name(name) or name)

    def laid_out(self, checkpoint: Checkpoint) -> Importance:
        """The importance, in GGUF's order as in files, for the tensors of a model that may have another order."""
        config = checkpoint.shape
        if not isinstance(config, ModelConfig) or config.delta is None:
            return self
        stored = config.laid_out("gguf").delta
        assert stored is not None
        values = dict(self.values)
        for layer in config.delta.layers:
            out, fused = f"blk.{layer}.ssm_out.weight", f"blk.{layer}.attn_qkv.weight"
            if out in values and config.delta.tiled != stored.tiled:
                values[out] = column_order(config.delta, stored, values[out].shape[-1]).applied(values[out])
            if fused in values and config.delta.fused:
                values[f"blk.{layer}.ssm_in.weight"] = values[fused]
        return replace(self, values=values)

    def without(self, outputs: Iterable[PlannedTensor]) -> tuple[str, ...]:
        """Notes on matrices of blocks that have no importance, by the output's names."""
        found = [(tensor.info.name, own_name(tensor)) for tensor in outputs]
        names = {name: own for name, own in found if own.startswith("blk.")}
        missing = [name for name, own in names.items() if self.of(own) is None]
        notes = []
        if missing:
            notes.append(
                f"{self.record.source} has no entry for {len(missing)} of {len(names)} matrices, which are rounded "
                f"without importance: {_few(missing)}"
            )
        if self.unused:
            notes.append(
                f"{self.record.source} has {sum(self.unused.values())} matrices of experts that saw no token, which "
                f"are rounded without importance: {_few([f'{n} of {name}' for name, n in self.unused.items()])}"
            )
        return tuple(notes)

    def by_output(self, outputs: Iterable[PlannedTensor]) -> dict[str, np.ndarray]:
        """Importance of the tensors to write, by the output's names: float32 [matrices, cols] each."""
        found = {}
        for tensor in outputs:
            values, info = self.of(own_name(tensor)), tensor.info
            if values is not None and len(info.shape) > 1:
                found[info.name] = values.reshape(-1, info.cols)  # a .dat file does not separate matrices
        return found


def _few(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def from_calibration(calibration: Calibration) -> Importance:
    """Importance from a statistics pass. A token embedding has one if it is the head too: that of the head's input."""
    values = {name: entry.importance for name, entry in _entries(calibration).items()}
    return Importance(values, calibration.record)


def to_imatrix(calibration: Calibration) -> Imatrix:
    """Content of an importance file, from a statistics pass."""
    record = calibration.record
    return Imatrix(_entries(calibration), (record.source,), record.tokens // record.context, record.context)


def _entries(calibration: Calibration) -> dict[str, Entry]:
    """Entries by tensor name; linears that share their statistics share the arrays."""
    shared: dict[int, Entry] = {}
    entries: dict[str, Entry] = {}
    stacks: dict[str, list[Entry]] = {}
    for name, stats in calibration.stats.items():
        own = "token_embd" if name == "output" and calibration.tied else name
        if id(stats) not in shared:
            sums = stats.square.astype(np.float32)[None]
            shared[id(stats)] = Entry(sums, np.array([stats.count], np.int64))
        expert = in_stack(f"{own}.weight")
        if expert is None:
            entries[f"{own}.weight"] = shared[id(stats)]
        else:
            stacks.setdefault(expert[0], []).append(shared[id(stats)])
    for name, each in stacks.items():
        entries[name] = Entry(np.concatenate([e.sums for e in each]), np.concatenate([e.counts for e in each]))
    return entries


def from_file(path: Path, tensors: Iterable[TensorInfo]) -> Importance:
    """Importance from an importance file. Matrices without an entry have none, see `Importance.without`.

    tensors: the model's tensors, under GGUF or Hugging Face names
    Raises FileError if the file cannot be read or belongs to another model: it names tensors that the model lacks, or
    has rows of another length.
    """
    imatrix = read_imatrix(path)
    shapes = {gguf_name(info.name) or info.name: info for info in tensors if len(info.shape) > 1}
    for name, entry in imatrix.entries.items():
        _check(path, name, entry, shapes.get(name))
    values = {name: entry.importance for name, entry in imatrix.entries.items()}
    unused = {name: int((entry.counts == 0).sum()) for name, entry in imatrix.entries.items()}
    return Importance(values, record_of(path, imatrix), {name: count for name, count in unused.items() if count})


def _check(path: Path, name: str, entry: Entry, info: TensorInfo | None) -> None:
    belongs = "the importance file belongs to another model; make one for this model with `bitsmith imatrix`."
    if info is None:
        raise FileError(f"{path}: it has an entry {name}, but the model has no such matrix; {belongs}")
    matrices = int(np.prod(info.shape[:-2]))
    if entry.sums.size != matrices * info.cols:
        raise FileError(
            f"{path}: {name}: expected {matrices * info.cols} values for {matrices} matrices with rows of {info.cols}, "
            f"found {entry.sums.size}; {belongs}"
        )
