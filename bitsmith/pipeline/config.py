"""QuantizeConfig: what the user of `quantize` chose, in the command line's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitsmith.calibration.method import Method

_CALIBRATED_BY_DEFAULT = "default"  # the text where a method needs one and nobody chose


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """What the user chose beside the model and the targets, in the command line's words.

    out: the file or folder; of several targets the folder that takes them all; None names it in the current folder
    method: see `bitsmith.calibration.method.methods`; None takes what loses least, see `default_method`
    effort: "fast", "normal" or "high"; None is normal. Given with no method it asks for a calibrated one
    calibration: "default" (the built-in text), a text or .jsonl file, a data set of the hub, "self" (the model's own
        text), or an importance file of llama.cpp's (.gguf, .dat); None rounds without, but where the method needs it.
        The next three say how many tokens, in windows of how many, and which
    memory: "4GB", what its hidden states may take
    device: "cpu" or "cuda" runs the calibration there; None takes CUDA where it is
    rules: "REGEX=TYPE", the first match wins
    keep: regular expressions of tensors that stay in 16 bits; group_size: weights that share a scale, -1 for a whole
        row; symmetric: without zero points; None takes the container's usual. For gptq, awq and compressed
    threads: None takes the machine's cores; max_shard_size: "2GB", "512MiB"
    dry_run: only the plan, exact in size
    """

    out: str | Path | None = None
    method: str | None = None
    effort: str | None = None
    calibration: str | None = None
    calibration_tokens: int | None = None
    calibration_context: int | None = None
    seed: int = 0
    memory: str | None = None
    device: str | None = None
    pure: bool = False
    rules: Sequence[str] = ()
    keep: Sequence[str] = ()
    group_size: int | None = None
    symmetric: bool | None = None
    threads: int | None = None
    max_shard_size: str | None = None
    pre: str | None = None
    revision: str | None = None
    requantize: bool = False
    dry_run: bool = False
    force: bool = False

    @property
    def calibration_source(self) -> str | None:
        """The calibration, the built-in text where the method or the effort asks for one and none was named."""
        if self.calibration is not None:
            return self.calibration
        wanted = self.effort not in (None, "fast") if self.method is None else Method.parse(self.method).needs_text
        return _CALIBRATED_BY_DEFAULT if wanted else None
