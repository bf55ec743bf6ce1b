"""The embedding as the output stores it: rounded for what the first block reads, and given to the rounded blocks.

An embedding has no inputs, so its rows have no Hessian of their own. What an error of a row does first is to change the
outputs of the linears that read it in the first block: those of attention and of the MLP, with weights W behind a norm
with weights g. So rows are rounded under the sum of (W g)^T (W g) as a Hessian, which needs no text. A table that is
the head too does far more as the head: its Hessian is that of the head's input in the original, and a tenth of the sum.
And the hidden states of the rounded model begin with the rounded rows, so that the blocks' weights are corrected for
their error as for that of earlier blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.collect import require_finite
from bitsmith.calibration.method import FINE_BITS
from bitsmith.calibration.rounding import LinearRounder, RoundingReport, round_named
from bitsmith.calibration.stats import GramMeter, Stats
from bitsmith.models.arch.block import parts_of
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.rounders.effort import EFFORTS
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.rounders.slabs import SLAB_ROWS
from bitsmith.quant.tensor import QuantTensor
from bitsmith.recipe.rounded_rows import RoundedRows
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.overridden import of_whole
from bitsmith.runtime.torch.ondemand import OnDemandKernel
from bitsmith.runtime.weights import WeightLoader

if TYPE_CHECKING:
    from bitsmith.calibration.blockwise import BlockwiseTask

EMBEDDING = "token_embd"
_FIRST = 0.1  # weight of the first block beside the head


@dataclass(frozen=True)
class StoredEmbedding:
    """A table of embeddings in the output.

    weight: the original's table
    format, rounder: of its rows
    """

    weight: Weight
    format: Format
    rounder: LinearRounder

    @classmethod
    def of(
        cls,
        loader: WeightLoader,
        format: Format | None,
        rounder: Callable[[Stats], LinearRounder] | None,
        head: Stats | None = None,
    ) -> StoredEmbedding | None:
        """The table of a model; None if the output keeps its floats.

        rounder: gives the rounder of matrices from the statistics of their input; None: nearest codes
        head: statistics of the head's input, if the table is the head too; see `tied_head`
        """
        if format is None:
            return None
        weight = loader.read(f"{EMBEDDING}.weight")
        stats = None if rounder is None else _readers(loader, head)
        own = _nearest if rounder is None or stats is None else rounder(stats)
        return cls(weight, of_whole(f"{EMBEDDING}.weight", weight, format), own)

    @classmethod
    def of_task(cls, loader: WeightLoader, task: BlockwiseTask, head: Stats | None = None) -> StoredEmbedding | None:
        """The table as a task of blockwise rounding stores it, see `of`; None if the output keeps its floats."""
        row, effort = task.method.row, EFFORTS[task.effort]
        rounder = (lambda stats: row.linear(stats, None, effort)) if task.calibrates_embedding else None
        return cls.of(loader, task.embedding, rounder, head)

    def followed(self, decoder: Decoder, tokens: np.ndarray) -> Decoder:
        """What embeds tokens for the rounded blocks: `within`, or the decoder itself from 8 bits on."""
        return self.within(decoder, tokens) if self.format.bits < FINE_BITS else decoder

    def rounded(self, w: np.ndarray) -> QuantTensor:
        """Codes and parameters of some rows, float32 [rows, cols]. Raises TensorError if they are not finite."""
        return round_named(self.rounder, EMBEDDING, torch.as_tensor(w), self.format)[0]

    def slabs(self) -> Iterator[RoundedRows]:
        """All rows, slab by slab."""
        rows = self.weight.info.rows
        for start in range(0, rows, SLAB_ROWS):
            w = self.weight.rows(start, min(start + SLAB_ROWS, rows))
            yield RoundedRows(f"{EMBEDDING}.weight", start, w, self.rounded(w))

    def whole(self) -> Weight:
        """The table, whose rows are rounded whenever they are read."""
        return replace(self.weight, rows=lambda start, stop: self._values(self.weight.rows(start, stop)))

    def _values(self, w: np.ndarray) -> np.ndarray:
        """Some rows as they decode."""
        parts = [w[start : start + SLAB_ROWS] for start in range(0, max(1, len(w)), SLAB_ROWS)]
        return np.concatenate([self.rounded(part).values() for part in parts])

    def within(self, decoder: Decoder, tokens: np.ndarray) -> Decoder:
        """A decoder of `decoder_without_blocks` that embeds these tokens, int64 [windows, n], with the stored rows.

        Memory holds the codes of the rows that occur.
        """
        embedding = decoder.weights.embedding
        assert isinstance(embedding.kernel, OnDemandKernel)
        numbers, tensor = self._codes(embedding.kernel, np.unique(tokens))
        kernel = _StoredRows(embedding.kernel.device, numbers=numbers, tensor=tensor)
        found = replace(decoder.weights, embedding=replace(embedding, kernel=kernel))
        return Decoder(decoder.config, found, decoder.ops)

    def _codes(self, kernel: OnDemandKernel, ids: np.ndarray) -> tuple[Tensor, QuantTensor]:
        """Numbers of rows, ascending, and their codes."""
        numbers, parts = torch.from_numpy(ids), []
        for start in range(0, len(ids), SLAB_ROWS):
            rows = kernel.gather(self.weight, numbers[start : start + SLAB_ROWS])
            parts.append(self.rounded(as_numpy(rows)))
        params = {name: np.concatenate([part.params[name] for part in parts]) for name in parts[0].params}
        return numbers, QuantTensor(parts[0].format, np.concatenate([part.codes for part in parts]), params)


@dataclass(frozen=True)
class _StoredRows(OnDemandKernel):
    """Gathers rows that were rounded before.

    numbers: int64, ascending: the rows in `tensor`
    """

    numbers: Tensor = field(kw_only=True)
    tensor: QuantTensor = field(kw_only=True)

    def gather(self, prepared: Weight, ids: Tensor) -> Tensor:
        """See `OnDemandKernel`."""
        unique, places = torch.unique(ids.cpu(), return_inverse=True)
        at = torch.searchsorted(self.numbers, unique).numpy()
        params = {name: values[at] for name, values in self.tensor.params.items()}
        rows = QuantTensor(self.tensor.format, self.tensor.codes[at], params).values()
        return torch.as_tensor(rows)[places].to(ids.device)


def _nearest(weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
    """A `LinearRounder`: the codes that the output gets without a calibration."""
    codes, params = nearest(as_numpy(weight), format)
    return QuantTensor(format, codes, params), RoundingReport()


def _readers(loader: WeightLoader, head: Stats | None) -> Stats | None:
    """What reads an error of a row, as if it were the statistics of an input. None if nothing does."""
    first = first_readers(loader)
    if head is None or not head.square.sum() > 0:
        return first
    if first is None:
        return replace(head, gram=torch.as_tensor(head.gram).clone())  # a rounder takes it over
    of_head = head.count / float(head.square.sum())
    of_first = _FIRST * head.count / float(first.square.sum())
    gram = torch.as_tensor(head.gram) * of_head
    gram = gram + torch.as_tensor(first.gram).to(gram.device) * of_first
    return replace(head, square=head.square * of_head + first.square * of_first, gram=gram)


def first_readers(loader: WeightLoader) -> Stats | None:
    """What the linears of the first block read an error of a row with, as if it were the statistics of an input.

    The attention's linears count as much as the MLP's, whatever the size of their weights. None if all are zero.
    Memory holds this block.
    """
    config, block = loader.config, loader.block(0)
    require_finite(block, "blk.0.")
    found: list[Stats] = []
    for part in parts_of(config, 0):
        meter = GramMeter()
        for group in part.operation.stages(config, 0, part.before)[0]:
            for matrix in (block.linears[name].prepared for name in group.linears):
                if matrix.shape[1] == config.hidden:
                    meter.add(matrix * block.norms[part.before] if part.before else matrix)
        found += [meter.result()] if meter.count else []
    found = [stats for stats in found if stats.square.sum() > 0]
    if not found:
        return None
    grams = [torch.as_tensor(stats.gram) / float(stats.square.sum()) for stats in found]
    squares = [stats.square / stats.square.sum() for stats in found]
    return replace(found[0], count=1, square=np.sum(squares, axis=0), gram=sum(grams[1:], grams[0]), exact=True)
