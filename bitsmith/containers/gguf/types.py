"""The ggml types as data: number in the file, weights per block, bytes per block (ggml.h, GGUF specification)."""

from __future__ import annotations

from dataclasses import dataclass

from bitsmith.errors import UnsupportedError


@dataclass(frozen=True)
class GgmlType:
    """One ggml type. A row is a whole number of blocks.

    number: its id in a GGUF file
    block: weights in a block; block_bytes: bytes of a block
    written: whether mixes and rules may choose it; the others are read only
    """

    name: str
    number: int
    block: int
    block_bytes: int
    written: bool

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight."""
        return self.block_bytes * 8 / self.block

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row. Raises UnsupportedError if the row is not a whole number of blocks."""
        if cols % self.block:
            raise UnsupportedError(
                f"a row of {cols} weights is not a whole number of {self.name} blocks of {self.block}"
            )
        return cols // self.block * self.block_bytes


TYPES: dict[str, GgmlType] = {
    name: GgmlType(name, number, block, block_bytes, written)
    for name, number, block, block_bytes, written in [
        ("f32", 0, 1, 4, True),
        ("f16", 1, 1, 2, True),
        ("q4_0", 2, 32, 18, True),
        ("q4_1", 3, 32, 20, True),
        ("q5_0", 6, 32, 22, True),
        ("q5_1", 7, 32, 24, True),
        ("q8_0", 8, 32, 34, True),
        ("q8_1", 9, 32, 36, False),
        ("q2_k", 10, 256, 84, True),
        ("q3_k", 11, 256, 110, True),
        ("q4_k", 12, 256, 144, True),
        ("q5_k", 13, 256, 176, True),
        ("q6_k", 14, 256, 210, True),
        ("q8_k", 15, 256, 292, False),
        ("iq2_xxs", 16, 256, 66, True),
        ("iq2_xs", 17, 256, 74, True),
        ("iq3_xxs", 18, 256, 98, True),
        ("iq1_s", 19, 256, 50, True),
        ("iq4_nl", 20, 32, 18, True),
        ("iq3_s", 21, 256, 110, True),
        ("iq2_s", 22, 256, 82, True),
        ("iq4_xs", 23, 256, 136, True),
        ("i8", 24, 1, 1, False),
        ("i16", 25, 1, 2, False),
        ("i32", 26, 1, 4, False),
        ("i64", 27, 1, 8, False),
        ("f64", 28, 1, 8, False),
        ("iq1_m", 29, 256, 56, True),
        ("bf16", 30, 1, 2, True),
        ("tq1_0", 34, 256, 54, True),
        ("tq2_0", 35, 256, 66, True),
        ("mxfp4", 39, 32, 17, True),
        ("nvfp4", 40, 64, 36, True),
        ("q1_0", 41, 128, 18, True),
        ("q2_0", 42, 64, 18, True),
    ]
}

BY_NUMBER: dict[int, GgmlType] = {t.number: t for t in TYPES.values()}
