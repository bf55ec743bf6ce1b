"""Evaluation: the result of a measurement, as a value, as JSON and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bitsmith.evaluation.divergence import Divergence
from bitsmith.evaluation.moments import Estimate
from bitsmith.system.tables import html_table


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The result of a measurement, and what was measured.

    model, against: names of the model and of the reference; against is None without a reference
    text: names of the texts
    text_sha256: hash of their bytes, one text after the other
    context: number of tokens in a window
    windows: number of scored windows
    tokens: number of scored predictions, context / 2 - 1 in each window
    loss: mean negative log likelihood, nats per token
    perplexity: exp(loss)
    divergence: divergence from the reference; None without a reference
    notes: notes for the user about the text, and what llama.cpp computes otherwise on the file
    """

    model: str
    against: str | None
    text: str
    text_sha256: str
    context: int
    windows: int
    tokens: int
    loss: Estimate
    perplexity: Estimate
    divergence: Divergence | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of numbers and strings, ready for JSON; an Estimate is {"value": ..., "error": ...}."""
        return {**asdict(self), "notes": list(self.notes)}

    def __repr__(self) -> str:
        """One line."""
        lost = f", KLD {self.divergence.kld.value:.6f} against {self.against!r}" if self.divergence else ""
        return f"<Evaluation {self.model!r}: perplexity {_plain(self.perplexity, 4)}{lost}>"

    def _repr_html_(self) -> str:
        title, *lines = self.lines()
        cells = [(line[:17].strip(), line[17:].strip()) for line in lines]
        return html_table(title, cells)

    def lines(self) -> list[str]:
        """The result as a few lines of text."""
        what = f"{self.windows:,} windows of {self.context} tokens, the second half of each scored"
        lines = [
            f"{self.model}" + (f" against {self.against}" if self.against else ""),
            f"text             {self.text}: {what}, {self.tokens:,} tokens",
            f"perplexity       {_plain(self.perplexity, 4)}",
        ]
        return lines + (_divergence_lines(self.divergence) if self.divergence else [])


def _divergence_lines(lost: Divergence) -> list[str]:
    return [
        f"  of the original {_plain(lost.reference_perplexity, 4)}",
        f"  ratio          {_plain(lost.ratio, 5)}",
        f"mean KLD         {_plain(lost.kld, 6)}",
        f"  median {lost.kld_median:.6f}, 99 % {lost.kld_99:.6f}, 99.9 % {lost.kld_999:.6f}, max {lost.kld_max:.6f}",
        f"top-1 agreement  {_percent(lost.top1)}",
        f"RMS delta p      {_percent(lost.delta_p_rms)}",
        f"mean delta p     {_percent(lost.delta_p)}",
    ]


def _plain(estimate: Estimate, digits: int) -> str:
    return f"{estimate.value:.{digits}f} ± {estimate.error:.{digits}f}"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.3f} ± {100 * estimate.error:.3f} %"
