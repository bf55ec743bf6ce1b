"""The census of a model: every parameter, its bits before and after, and why what stayed stayed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from bitsmith.system.sizes import human_bytes


@dataclass(frozen=True)
class CensusRow:
    """One parameter.

    name: as in the model, the first of its names where it is shared
    module: class of the module that has it, as it was found
    shape: of the weights, as the model has them
    stored: the format, "nf4", or the dtype of what stayed, "bfloat16"
    bytes_before, bytes_after: in memory
    reason: why it stayed; "" for what was quantized
    expected: whether it was quantized, asked to stay, or is nothing that a format is for
    shared: its other names
    """

    name: str
    module: str
    shape: tuple[int, ...]
    stored: str
    bytes_before: int
    bytes_after: int
    reason: str = ""
    expected: bool = True
    shared: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def bits_before(self) -> float:
        """Bits a weight."""
        return 8 * self.bytes_before / max(self.weights, 1)

    @property
    def bits_after(self) -> float:
        """Bits a weight, scales included."""
        return 8 * self.bytes_after / max(self.weights, 1)


@dataclass(frozen=True, repr=False)
class Census:
    """All parameters of a model. `str` is a table, `repr` one line; iterates over its rows."""

    rows: tuple[CensusRow, ...]

    def __iter__(self) -> Iterator[CensusRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> CensusRow:
        """The row of a parameter, by any of its names. Raises KeyError for another."""
        for row in self.rows:
            if name == row.name or name in row.shared:
                return row
        raise KeyError(name)

    @property
    def quantized(self) -> tuple[CensusRow, ...]:
        """What was quantized."""
        return tuple(row for row in self.rows if not row.reason)

    @property
    def stayed(self) -> tuple[CensusRow, ...]:
        """What stayed, each with its reason."""
        return tuple(row for row in self.rows if row.reason)

    @property
    def unexpected(self) -> tuple[CensusRow, ...]:
        """What stayed and was not asked to: matrices that are not understood, or do not divide."""
        return tuple(row for row in self.rows if not row.expected)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(row.weights for row in self.rows)

    @property
    def bytes_before(self) -> int:
        """Bytes of all parameters as they were."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of all parameters now."""
        return sum(row.bytes_after for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight now, over all parameters."""
        return 8 * self.bytes_after / max(self.weights, 1)

    @property
    def unexpected_share(self) -> float:
        """Weights that stayed without being asked to, as a share of these and those that were quantized."""
        left = sum(row.weights for row in self.unexpected)
        return left / max(left + sum(row.weights for row in self.quantized), 1)

    def to_dict(self) -> dict[str, Any]:
        """Totals and rows, for JSON."""
        return {
            "weights": self.weights,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "bits_per_weight": self.bits_per_weight,
            "unexpected_share": self.unexpected_share,
            "parameters": [
                asdict(row) | {"bits_before": row.bits_before, "bits_after": row.bits_after} for row in self.rows
            ],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON, indented."""
        return json.dumps(self.to_dict(), indent=2)

    def __repr__(self) -> str:
        return (
            f"<Census: {len(self.quantized)} of {len(self.rows)} parameters quantized, "
            f"{human_bytes(self.bytes_before)} -> {human_bytes(self.bytes_after)}, "
            f"{self.bits_per_weight:.2f} bits per weight>"
        )

    def __str__(self) -> str:
        """A table: parameters that differ in their layer's number only are one line."""
        lines = [("parameter", "shape", "stored", "bits", "size", "why it stayed")]
        for group in _grouped(self.rows):
            row, count = group[0], len(group)
            name = _template(row.name) if count > 1 else row.name
            lines.append(
                (
                    f"{name} x {count}" if count > 1 else name,
                    " x ".join(map(str, row.shape)),
                    row.stored,
                    f"{row.bits_before:.4g} -> {row.bits_after:.4g}",
                    human_bytes(sum(each.bytes_after for each in group)),
                    row.reason,
                )
            )
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        table = ["  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[5]]) for line in lines]
        total = (
            f"{human_bytes(self.bytes_before)} -> {human_bytes(self.bytes_after)}, {self.weights:,} weights, "
            f"{self.bits_per_weight:.3f} bits per weight"
        )
        return "\n".join([*(line.rstrip() for line in table), total])


def _template(name: str) -> str:
    """The name with its numbers as stars."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _grouped(rows: tuple[CensusRow, ...]) -> list[list[CensusRow]]:
    groups: dict[tuple[Any, ...], list[CensusRow]] = {}
    for row in rows:
        key = (_template(row.name), row.shape, row.stored, row.reason, row.bytes_before, row.bytes_after)
        groups.setdefault(key, []).append(row)
    return list(groups.values())
