"""The ggml types as data: number in the file, weights per block, bytes per block (ggml.h, GGUF specification)."""

from __future__ import annotations

from dataclasses import dataclass

from bitsmith.errors import UnsupportedError


@dataclass(frozen=True)
class GgmlType:
    """One ggml type. `number` is its id in a GGUF file; a row is a whole number of blocks."""

    name: str
    number: int
    block: int
    block_bytes: int

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
    name: GgmlType(name, number, block, block_bytes)
    for name, number, block, block_bytes in [
        ("f32", 0, 1, 4),
        ("f16", 1, 1, 2),
        ("q4_0", 2, 32, 18),
        ("q4_1", 3, 32, 20),
        ("q5_0", 6, 32, 22),
        ("q5_1", 7, 32, 24),
        ("q8_0", 8, 32, 34),
        ("q8_1", 9, 32, 36),
        ("q2_k", 10, 256, 84),
        ("q3_k", 11, 256, 110),
        ("q4_k", 12, 256, 144),
        ("q5_k", 13, 256, 176),
        ("q6_k", 14, 256, 210),
        ("q8_k", 15, 256, 292),
        ("iq2_xxs", 16, 256, 66),
        ("iq2_xs", 17, 256, 74),
        ("iq3_xxs", 18, 256, 98),
        ("iq1_s", 19, 256, 50),
        ("iq4_nl", 20, 32, 18),
        ("iq3_s", 21, 256, 110),
        ("iq2_s", 22, 256, 82),
        ("iq4_xs", 23, 256, 136),
        ("i8", 24, 1, 1),
        ("i16", 25, 1, 2),
        ("i32", 26, 1, 4),
        ("i64", 27, 1, 8),
        ("f64", 28, 1, 8),
        ("iq1_m", 29, 256, 56),
        ("bf16", 30, 1, 2),
        ("tq1_0", 34, 256, 54),
        ("tq2_0", 35, 256, 66),
        ("mxfp4", 39, 32, 17),
        ("nvfp4", 40, 64, 36),
        ("q1_0", 41, 128, 18),
        ("q2_0", 42, 64, 18),
    ]
}

BY_NUMBER: dict[int, GgmlType] = {t.number: t for t in TYPES.values()}
