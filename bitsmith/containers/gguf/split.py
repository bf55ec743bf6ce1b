"""Names and keys of a model split over several GGUF files, as llama.cpp's loader expects them."""

from __future__ import annotations

import re

SPLIT_PREFIX = "split."
SPLIT_NO = "split.no"  # number of the file, from 0, uint16
SPLIT_COUNT = "split.count"  # number of files, uint16
SPLIT_TENSORS = "split.tensors.count"  # number of tensors in all files together, int32

_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL | re.ASCII)


def split_name(prefix: str, number: int, count: int) -> str:
    """File name of part `number`, counted from 1."""
    return f"{prefix}-{number:05d}-of-{count:05d}.gguf"


def split_parts(filename: str) -> tuple[str, int, int] | None:
    """Prefix, number (from 1) and count in the name of a split file; None for any other name."""
    match = _NAME.fullmatch(filename)
    return (match["prefix"], int(match["number"]), int(match["count"])) if match else None


def split_prefix(filename: str) -> str:
    """The common name of the files of a set: "m-00001-of-00003.gguf" and "m.gguf" both give "m"."""
    parts = split_parts(filename)
    return parts[0] if parts else filename.removesuffix(".gguf")
