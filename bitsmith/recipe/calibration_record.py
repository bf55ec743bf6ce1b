"""CalibrationRecord: the calibration of an output file, as its manifest records it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

UNKNOWN_SHA256 = "0" * 64


@dataclass(frozen=True)
class CalibrationRecord:
    """Everything that decides the statistics of a calibration.

    source: name of the text, data set or importance file, without its folder
    sha256: hash of the token ids (int64 little-endian, window by window), or of the bytes of an importance file. It is
        zeros until it is known, if the model generates the text. Its width is fixed, so that sizes are exact
    tokens: number of tokens seen; 0 if an importance file does not say
    context: number of tokens in a window; 0 if an importance file does not say
    seed: seed for the choice of windows; None for an importance file
    all_experts: whether every token counted for every expert, whatever the router chose
    """

    source: str
    sha256: str
    tokens: int
    context: int
    seed: int | None
    all_experts: bool = False

    def to_dict(self) -> dict[str, str | int | None]:
        """Plain values for JSON."""
        found = asdict(self)
        if not self.all_experts:
            found.pop("all_experts")
        return found
