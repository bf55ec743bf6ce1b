"""The formats by name: one visible table."""

from __future__ import annotations

import re
from difflib import get_close_matches

from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format, VectorFormat
from bitsmith.quant.formats.fourbit import BLOCKS, DoublyQuantized, fp4, nf4
from bitsmith.quant.formats.fp8 import fp8
from bitsmith.quant.formats.ggml import GGML_FORMATS
from bitsmith.quant.formats.tensorwide import TensorWide

_GROUPS = (128, 64, 32)

_GENERIC: tuple[Format, ...] = (
    *(
        Affine(bits, group, asym, precision)
        for precision in ("", "f16")
        for bits in (8, 4, 3, 2)
        for group in (*_GROUPS, 0)
        for asym in (False, True)
    ),
    *(TensorWide(f"int{bits}-tensor", Affine(bits, 0)) for bits in (8, 4, 3, 2)),
    *(TensorWide(f"int{bits}-tensor-asym", Affine(bits, 0, True)) for bits in (8, 4, 3, 2)),
    *(table(block) for block in BLOCKS for table in (nf4, fp4)),
    *(DoublyQuantized(table(block)) for block in BLOCKS for table in (nf4, fp4)),
    fp8(),
    TensorWide("fp8-tensor", fp8()),
)

# those of ggml with a code a weight; only GGUF files hold vectors (`VectorFormat`), see GGML_FORMATS
_SCALAR = {name: format for name, format in GGML_FORMATS.items() if not isinstance(format, VectorFormat)}
FORMATS: dict[str, Format] = {format.name: format for format in _GENERIC} | _SCALAR

# Integer formats without a scope, for which `resolve` finds the group: "int4", "int4-asym"
UNSCOPED = frozenset(
    Affine(format.bits, 0, format.asymmetric).name.replace("-channel", "")
    for format in _GENERIC
    if isinstance(format, Affine)
)

_INTEGER = re.compile(r"(int[0-9]+)((?:-[a-z0-9]+)*)")


def get_format(name: str) -> Format:
    """The format of that name. Integer formats take suffixes in any order; without a scope they mean -g128.

    Raises UsageError, with the nearest names, if the name is unknown.
    """
    canonical = _canonical(name, "g128")
    if canonical not in FORMATS:
        near = get_close_matches(canonical, FORMATS, n=4, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        others = [other for other in FORMATS if not _INTEGER.fullmatch(other)]
        raise UsageError(
            f"{name!r} is not a format{hint} Known: int8, int4, int3 and int2 with -g128, -g64, -g32, -channel or "
            f"-tensor, -f16 (scales) and -asym; {', '.join(others)}."
        )
    return FORMATS[canonical]


def resolve(name: str, cols: int) -> Format:
    """The format of that name for rows of `cols` weights.

    An integer format without a scope ("int4", "int4-asym") gets the largest group of 128, 64 and 32 that
    divides the row. Raises UsageError for an unknown name, UnsupportedError if the row does not divide.
    """
    for group in _GROUPS:
        format = get_format(_canonical(name, f"g{group}"))
        if cols > 0 and cols % format.multiple == 0:
            return format
    if format.name != get_format(name).name:
        needs, advice = f"a row length that divides by {_GROUPS[-1]}", f"choose {format.name.replace('g32', 'channel')}"
    else:
        needs, advice = f"a row length that divides by {format.multiple}", "choose another format"
    raise UnsupportedError(
        f"{name} needs {needs}; these rows have {cols} weights: {advice}, or leave the tensor in f16"
    )


def _canonical(name: str, scope: str) -> str:
    """`name` in lower case, with an integer format's suffixes in order, and with `scope` if it has none."""
    name = name.strip().lower()
    match = _INTEGER.fullmatch(name)
    if match is None:
        return name
    suffixes = match[2].split("-")[1:]
    asymmetric = ["asym"] if "asym" in suffixes else []
    scopes = [suffix for suffix in suffixes if suffix != "asym"] or [scope]
    return "-".join([match[1], *scopes, *asymmetric]) if suffixes.count("asym") < 2 else name
