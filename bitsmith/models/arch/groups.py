"""LinearGroup: linears that share an input, and the tensor that produces it."""

from __future__ import annotations

from bitsmith.models.arch.block import linear_groups
from bitsmith.models.arch.operations.base import LinearGroup

__all__ = ["LinearGroup", "linear_groups"]
