"""FileLayout: the position of every byte of an output file, known before any work starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """The bytes of one part of one tensor: `nbytes` at `offset` from the start of the file."""

    tensor: str
    part: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class FileLayout:
    """One output file.

    header: everything before the first region, padding included. It is made again when the hashes of its manifest
        are known; fixed-width fields keep its length.
    regions: in file order; gaps between them are zero bytes
    size: exact size of the whole file, in bytes
    """

    filename: str
    header: bytes
    regions: tuple[Region, ...]
    size: int
