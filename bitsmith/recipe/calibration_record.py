"""CalibrationRecord: what a file's manifest says of the calibration behind it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

UNKNOWN_SHA256 = "0" * 64


@dataclass(frozen=True)
class CalibrationRecord:
    """Everything that decided the statistics.

    source: name of the text, data set or importance file, without its folder
    sha256: of the token ids, int64 little-endian, window by window; of an importance file: of its bytes. Zeros until
        it is known (text the model has yet to generate); of fixed width, so that sizes are exact beforehand.
    tokens: tokens seen; 0 where an importance file does not say
    context: tokens in a window; 0 where an importance file does not say
    seed: of the choice of windows; None for an importance file
    """

    source: str
    sha256: str
    tokens: int
    context: int
    seed: int | None

    def to_dict(self) -> dict[str, str | int | None]:
        """Plain values for JSON."""
        return asdict(self)
