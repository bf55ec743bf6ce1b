"""Token ids as decoders take them."""

from __future__ import annotations

import numpy as np

from bitsmith.errors import UsageError


def checked_tokens(tokens: np.ndarray, vocab: int) -> np.ndarray:
    """`tokens` as int64 [batch, n]. Raises UsageError where they are none, or not below `vocab`."""
    ids = np.asarray(tokens)
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise UsageError(f"tokens must be integers [batch, n], found {ids.dtype} {list(ids.shape)}.")
    if ids.min() < 0 or ids.max() >= vocab:
        raise UsageError(
            f"token ids must lie in 0..{vocab - 1}, found {int(ids.min())}..{int(ids.max())}; the "
            "tokenizer belongs to another model."
        )
    return np.ascontiguousarray(ids, np.int64)
