"""Inputs of the linears of a block, as a pass computes them, and the way through a part of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from torch import Tensor

from bitsmith.calibration.beside import WindowStates
from bitsmith.calibration.collect import RecordedLinear
from bitsmith.calibration.passing import pass_through
from bitsmith.calibration.stats import MOST_GRAMS
from bitsmith.models.arch.block import Part, part_groups, parts_of
from bitsmith.models.arch.operations.base import LinearGroup
from bitsmith.runtime.decoder import Decoder, Pass, Routing
from bitsmith.runtime.weights import Block


class _ReachedError(Exception):
    """Raised when all inputs that were asked for are known."""


def inputs_of(
    decoder: Decoder,
    layer: int,
    part: Part,
    block: Block,
    groups: Sequence[LinearGroup],
    x: Tensor,
    shared: Pass | None = None,
) -> dict[LinearGroup, Tensor]:
    """Inputs of groups of a part's linears: float32 [..., cols]. Computes no more than they need.

    x: hidden states [windows, n, hidden] before the part
    shared: the pass of these windows; None where the part reads nothing but x
    An expert that no token passes has no input.
    """
    found: dict[LinearGroup, Tensor] = {}

    def keeping(group: LinearGroup) -> Callable[[Tensor], None]:
        return lambda rows: found.__setitem__(group, rows)

    watch(decoder, layer, part, block, {group: keeping(group) for group in groups}, x, shared)
    return found


def watch(
    decoder: Decoder,
    layer: int,
    part: Part,
    block: Block,
    watchers: Mapping[LinearGroup, Callable[[Tensor], None]],
    x: Tensor,
    shared: Pass | None = None,
) -> None:
    """Call watchers with the inputs of their groups, float32 [..., cols], one after the other; see `inputs_of`."""
    waiting = set(watchers)

    def told(group: LinearGroup) -> Callable[[Tensor], None]:
        def tell(rows: Tensor) -> None:
            watchers[group](rows)
            waiting.discard(group)
            if not waiting:
                raise _ReachedError

        return tell

    watched = {
        group.linears[0]: RecordedLinear.watching(block.linears[group.linears[0]], told(group)) for group in watchers
    }
    with suppress(_ReachedError):
        decoder.operate(layer, part, block.with_linears(watched), x, shared or decoder.place(x.shape[1]))


def portions(groups: Sequence[LinearGroup], block: Block) -> Iterator[tuple[LinearGroup, ...]]:
    """Groups whose statistics are summed in one pass, so that Gram matrices do not need more than `MOST_GRAMS`."""
    return portions_of({group: int(block.linears[group.linears[0]].prepared.shape[1]) for group in groups})


def portions_of(groups: Mapping[LinearGroup, int]) -> Iterator[tuple[LinearGroup, ...]]:
    """The same, of groups with the number of columns of their inputs."""
    portion: list[LinearGroup] = []
    size = 0
    for group, cols in groups.items():
        own = 4 * cols**2
        if portion and size + own > MOST_GRAMS:
            yield tuple(portion)
            portion, size = [], 0
        portion.append(group)
        size += own
    if portion:
        yield tuple(portion)


def input_of(decoder: Decoder, layer: int, block: Block, group: str, x: Tensor) -> Tensor:
    """Input of the group of this name: float32 [windows, n, cols]; see `inputs_of`.

    Raises ValueError for an unknown name.
    """
    for part in parts_of(decoder.config, layer):
        for each in part_groups(decoder.config, layer, part):
            if each.name == group:
                return inputs_of(decoder, layer, part, block, (each,), x)[each]
    raise ValueError(f"{group} is the input of no group of linears.")


def advance_part(
    decoder: Decoder, layer: int, part: Part, block: Block, hidden: WindowStates, routing: Routing | None = None
) -> None:
    """Advance hidden states through one part of a block."""
    pass_through(
        decoder, layer, hidden, lambda x, shared, at: decoder.run_part(layer, part, block, x, shared), routing=routing
    )
