"""Token ids as decoders take them."""

from __future__ import annotations

import numpy as np

from bitsmith.errors import UsageError


def checked_tokens(tokens: np.ndarray, vocab: int) -> np.ndarray:
    """`tokens` as int64 [batch, n]. Raises UsageError where they are none, or not below `vocab`."""
    ids = np.asarray(tokens)
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise UsageError(f"tokens must be integers [batch, n], found {ids.dtype} {list(ids.shape)}.")
    flat = ids.ravel().tolist()  # of a single token, much faster than numpy's min and max
    if min(flat) < 0 or max(flat) >= vocab:
        raise UsageError(
            f"token ids must lie in 0..{vocab - 1}, found {min(flat)}..{max(flat)}; the "
            "tokenizer belongs to another model."
        )
    return np.ascontiguousarray(ids, np.int64)
