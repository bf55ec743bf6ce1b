"""Parts of the windows of a text, which several workers take."""

from __future__ import annotations

import numpy as np

from bitsmith.calibration.pieces import BATCH_TOKENS

PART_TOKENS = 1 << 14  # of the windows that one task sums over


def parts_of_windows(tokens: np.ndarray) -> list[tuple[int, int]]:
    """First window, and the one behind the last, of each part: whole batches, about PART_TOKENS tokens.

    tokens: int64 [windows, context]
    """
    windows, context = tokens.shape
    batch = max(1, BATCH_TOKENS // context)
    step = max(1, PART_TOKENS // (batch * context)) * batch
    return [(start, min(start + step, windows)) for start in range(0, windows, step)]
