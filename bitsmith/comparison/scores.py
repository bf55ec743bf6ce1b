"""What one model does on each scored token of one domain: the values that all figures are made of."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from bitsmith.errors import FileError


@dataclass(frozen=True)
class TokenScores:
    """Values of each token, in the order of the windows.

    losses: float64 [tokens], negative log likelihood of the text's next token, nats
    kld: float64 [tokens], KL(original || model), nats; zeros for the original itself
    same_top: bool [tokens], whether the original's most probable token is the same
    right: bool [tokens], whether the most probable token is the text's next one
    """

    losses: np.ndarray
    kld: np.ndarray
    same_top: np.ndarray
    right: np.ndarray

    def to_bytes(self) -> bytes:
        """For keeping: the arrays behind each other, compressed."""
        flags = np.packbits(np.concatenate([self.same_top, self.right]))
        parts = self.losses.astype("<f8").tobytes(), self.kld.astype("<f8").tobytes(), flags.tobytes()
        return zlib.compress(b"".join(parts), 1)

    @classmethod
    def from_bytes(cls, data: bytes, tokens: int) -> TokenScores:
        """Raises FileError if the bytes are not those of so many tokens."""
        size = 16 * tokens + (2 * tokens + 7) // 8
        try:
            stream = zlib.decompressobj()
            plain = stream.decompress(data, size + 1)
        except zlib.error as error:
            raise FileError(f"kept measurements are damaged ({error})") from error
        if len(plain) != size:
            raise FileError(f"kept measurements are damaged: not those of {tokens:,} tokens")
        flags = np.unpackbits(np.frombuffer(plain, np.uint8, offset=16 * tokens))[: 2 * tokens].astype(bool)
        return cls(
            np.frombuffer(plain, "<f8", tokens).astype(np.float64),
            np.frombuffer(plain, "<f8", tokens, 8 * tokens).astype(np.float64),
            flags[:tokens],
            flags[tokens:],
        )


def joined(parts: list[TokenScores]) -> TokenScores:
    """Several pieces, one behind the other."""
    return TokenScores(
        *(np.concatenate([vars(part)[name] for part in parts]) for name in ("losses", "kld", "same_top", "right"))
    )
