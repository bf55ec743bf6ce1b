"""Token ids as decoders take them."""

from __future__ import annotations

import numpy as np

from bitsmith.errors import UsageError

_MOST = 2**31 - 1  # positions; padding of more is no different


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


def checked_padding(padding: np.ndarray | None, batch: int) -> np.ndarray:
    """int64 [batch], tokens of padding on the left of each sequence. Raises UsageError for anything else."""
    counts = np.zeros(batch, np.int64) if padding is None else np.ascontiguousarray(padding, np.int64)
    if counts.shape != (batch,) or (counts < 0).any():
        raise UsageError(f"padding must be {batch} counts, one a sequence, found {counts.tolist()}.")
    return np.minimum(counts, _MOST)
