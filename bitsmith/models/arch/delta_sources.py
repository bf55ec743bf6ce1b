"""Where the rows and columns of a gated delta net lie: in Hugging Face's order and in GGUF's (llama.cpp, qwen.py).

Value heads are grouped by key head, or tiled. q, k, v and z are two matrices, or one with the rows of each key head
together. Everything is said by GGUF's names; Hugging Face's files have other names for some.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitsmith.containers.derived import Columns, Derived, Piece
from bitsmith.models.arch.config import DeltaNet

Unit = tuple[str, int]  # "q", "k", "v", "z", "b" or "a", and the number of a head in Hugging Face's order

HF_NAMES = {"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"}
HF_NAMES |= {"ssm_conv1d.weight": "linear_attn.conv1d.weight"}
_BY_COLUMN = ("ssm_a", "ssm_dt.bias", "ssm_out.weight")  # their columns, or values, follow the value heads


def relaid(part: str, shape: tuple[int, ...], wanted: DeltaNet, stored: DeltaNet, blk: str) -> Derived | None:
    """How a tensor in the order `wanted` is made of tensors in the order `stored`; None if it is one of them.

    part: GGUF's name after "blk.N."; blk: "blk.N."
    """
    if (wanted.tiled, wanted.fused) == (stored.tiled, stored.fused):
        return None
    if part in _BY_COLUMN:
        if wanted.tiled == stored.tiled:
            return None
        rows = 1 if len(shape) == 1 else shape[0]
        return Derived(shape, (Piece(f"{blk}{part}", 0, rows),), columns=column_order(wanted, stored, shape[-1]))
    units = _units(wanted).get(part)
    if units is None:
        return None
    places = {unit: place for name, each in _units(stored).items() for unit, place in _places(stored, name, each)}
    if part == "ssm_conv1d.weight":  # not fused, whatever the matrices are
        places = dict(_places(stored, part, _units(stored)[part]))
    pieces = tuple(_joined(blk, [places[unit] for unit in units]))
    return None if len(pieces) == 1 and pieces[0].name == f"{blk}{part}" else Derived(shape, pieces)


def column_order(wanted: DeltaNet, stored: DeltaNet, cols: int) -> Columns:
    """The order of columns that follow the value heads."""
    shared, width = stored.value_heads // stored.key_heads, cols // stored.value_heads
    return Columns(stored.key_heads, shared, width) if wanted.tiled else Columns(shared, stored.key_heads, width)


def _units(net: DeltaNet) -> dict[str, list[Unit]]:
    """The heads whose rows the tensors consist of, in order."""
    shared = net.value_heads // net.key_heads
    heads = list(range(net.value_heads))
    if net.tiled:
        heads = [group * shared + each for each in range(shared) for group in range(net.key_heads)]
    mixed = [(part, head) for part in "qk" for head in range(net.key_heads)] + [("v", head) for head in heads]
    found: dict[str, list[Unit]] = {"ssm_conv1d.weight": mixed}
    if net.fused:
        found["ssm_in.weight"] = [unit for group in range(net.key_heads) for unit in _group(group, shared)]
    else:
        found |= {"attn_qkv.weight": mixed, "attn_gate.weight": [("z", head) for head in heads]}
    return found | {
        "ssm_beta.weight": [("b", head) for head in heads],
        "ssm_alpha.weight": [("a", head) for head in heads],
    }


def _group(group: int, shared: int) -> list[Unit]:
    """The heads of a key head in a fused matrix."""
    own = range(group * shared, (group + 1) * shared)
    return [("q", group), ("k", group), *(("v", head) for head in own), *(("z", head) for head in own)]


def _places(net: DeltaNet, name: str, units: list[Unit]) -> Iterator[tuple[Unit, tuple[str, int, int]]]:
    """The tensor, the first row and the number of rows of each head."""
    sizes = {"q": net.key_dim, "k": net.key_dim, "v": net.value_dim, "z": net.value_dim, "b": 1, "a": 1}
    at = 0
    for unit in units:
        yield unit, (name, at, sizes[unit[0]])
        at += sizes[unit[0]]


def _joined(blk: str, places: list[tuple[str, int, int]]) -> Iterator[Piece]:
    """The pieces; those that follow each other in a tensor are one."""
    name, first, count = places[0]
    for other, start, rows in places[1:]:
        if other == name and start == first + count:
            count += rows
            continue
        yield Piece(f"{blk}{name}", first, count)
        name, first, count = other, start, rows
    yield Piece(f"{blk}{name}", first, count)
