"""Round to nearest: fits the scales, then chooses the nearest value of the grid for each weight."""

from __future__ import annotations

from bitsmith.quant.formats.base import Format, Params, ReferenceCoded, VectorFormat
from bitsmith.quant.formats.core_ladder import rounded
from bitsmith.quant.formats.search import usable
from bitsmith.quant.grid import Array


def nearest(w: Array, format: Format, importance: Array | None = None) -> tuple[Array, Params]:
    """Codes and stored parameters for `w`, float32 [rows, cols]: uint8 [rows, cols]; vectors' int32 [rows, cols / 8].

    importance: [cols] float32 or None, see `Format.fit`.
    """
    if importance is None and isinstance(format, ReferenceCoded):
        return format.reference(w)
    if isinstance(format, VectorFormat):
        return format.nearest(w, importance)
    found = rounded(format, w, importance) if usable(importance) else None
    if found is not None:
        return found
    params = format.fit(w, importance)
    return format.grid(params).nearest(w), params
