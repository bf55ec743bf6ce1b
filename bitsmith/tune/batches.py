"""Batches of examples: padded to the longest, or packed into rows of one length."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsmith.errors import UsageError
from bitsmith.tune.examples import Example

IGNORED = -100  # a label that does not count, for torch and transformers
_PACKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class Row:
    """One row of a batch: one example, or several that do not see each other.

    ids, labels, positions: int64 [tokens]; positions start again with every example; a label is the token at its own
    place, as transformers takes them, or IGNORED
    """

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def rows_of(examples: Sequence[Example], *, context: int, packing: bool) -> list[Row]:
    """The rows of a data set, in its order; packed ones in the order of their first example."""
    if not packing:
        return [_row([each]) for each in examples]
    return [_row([examples[number] for number in bin]) for bin in _packed([len(each) for each in examples], context)]


def _packed(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Numbers of examples for each row: the longest first, each into the row where it leaves the least room."""
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    rooms: list[tuple[int, int]] = []  # (room left, bin), ascending
    bins: list[list[int]] = []
    for number in order:
        at = bisect_left(rooms, (lengths[number], -1))
        room, bin = rooms.pop(at) if at < len(rooms) else (context, len(bins))
        if bin == len(bins):
            bins.append([])
        bins[bin].append(number)
        insort(rooms, (room - lengths[number], bin))
    return sorted((sorted(bin) for bin in bins), key=lambda bin: bin[0])


def _row(examples: Sequence[Example]) -> Row:
    return Row(
        np.concatenate([each.ids for each in examples]).astype(np.int64),
        np.concatenate([np.where(each.learned, each.ids, IGNORED) for each in examples]).astype(np.int64),
        np.concatenate([np.arange(len(each)) for each in examples]).astype(np.int64),
    )


@dataclass(frozen=True)
class Collator:
    """Rows -> a batch for transformers. Shorter rows are filled at their end, which no earlier token sees.

    packed: whether rows hold several examples, so that positions must be given
    """

    filler: int
    packed: bool

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """input_ids and labels, int64 [rows, tokens]; position_ids where rows are packed."""
        width = max(map(len, rows))
        batch = {
            "input_ids": np.full((len(rows), width), self.filler, np.int64),
            "labels": np.full((len(rows), width), IGNORED, np.int64),
            "position_ids": np.zeros((len(rows), width), np.int64),
        }
        for number, row in enumerate(rows):
            batch["input_ids"][number, : len(row)] = row.ids
            batch["labels"][number, : len(row)] = row.labels
            batch["position_ids"][number, : len(row)] = row.positions
            batch["position_ids"][number, len(row) :] = np.arange(width - len(row))
        if not self.packed:
            del batch["position_ids"]
        return {name: torch.from_numpy(values) for name, values in batch.items()}


def check_packing(config: object) -> None:
    """Raise UsageError for a model whose layers keep a state, which one example would hand to the next.

    config: transformers' configuration
    """
    text = getattr(config, "get_text_config", lambda: config)()
    kinds = set(getattr(text, "layer_types", None) or ())
    stateful = bool(kinds - _PACKED_LAYERS) or bool(getattr(text, "is_stateful", False))
    if stateful or any(word in str(getattr(text, "model_type", "")) for word in ("mamba", "rwkv", "jamba")):
        raise UsageError("--packing is for attention alone: this model has layers that keep a state; leave it out.")
