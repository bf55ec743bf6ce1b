"""The second order around the original, from one backward pass over a text.

For predictions p of one token, the Hessian of the divergence in the logits is diag(p) - p p^T. A gradient v with just
this covariance, v = s e - p (s . e) with s the root of p and e standard normal, is sent back through the model; the
squared product of the gradient of a matrix and its rounding error d is then, on average, d F d. Windows and errors are
all seen in one pass, since gradients of different tokens are independent. Products see the whole matrix F, also
between the weights of a matrix, where rounding errors are correlated (GPTQ). They are noisy: a window is one sample of
chi square. The squares by rows and columns are not, but see only the diagonal. `joining` joins both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.sensitivity.footprint import BATCH_TOKENS, LOGITS
from bitsmith.calibration.sensitivity.joining import Cost
from bitsmith.calibration.sensitivity.meter import Errors, GradientMeter, Seen
from bitsmith.calibration.sensitivity.watched import WatchedModel
from bitsmith.system.progress import Progress, Report, silent

_SMALL = 1e-300


@dataclass(frozen=True)
class Fisher:
    """What one pass saw. hidden: float32 [windows, n, hidden], the original's states after the last block"""

    seen: dict[str, Seen]
    hidden: Tensor


def fisher(
    model: WatchedModel, errors: Errors, tokens: np.ndarray, *, seed: int = 0, report: Report = silent
) -> Fisher:
    """One backward pass.

    errors: see `GradientMeter`
    tokens: int64 [windows, n]
    seed: of the random directions; the same seed gives the same result
    """
    meter = GradientMeter(errors, model.counts)
    random = torch.Generator().manual_seed(seed)

    hidden = []
    for start, batch in batches(tokens, model.config.vocab):
        report(Progress("sensitivity", start, len(tokens), "windows"))
        meter.begin(len(batch))
        hidden.append(model.backward(batch, partial(direction, random=random), meter))
    return Fisher(meter.seen(), torch.cat(hidden))


def direction(logits: Tensor, *, random: torch.Generator) -> Tensor:
    """A random gradient of each token's logits, float32 [..., vocab], with covariance diag(p) - p p^T; it sums to 0."""
    p = logits.softmax(-1)
    v = torch.randn(p.shape, generator=random).to(p.device).mul_(p.sqrt())
    return v.sub_(p.mul_(v.sum(-1, keepdim=True)))


def batches(tokens: np.ndarray, vocab: int) -> list[tuple[int, np.ndarray]]:
    """(first window, windows) of batches of about `BATCH_TOKENS`, or fewer where the vocabulary is large."""
    step = max(1, min(BATCH_TOKENS, LOGITS // vocab) // tokens.shape[1])
    return [(start, tokens[start : start + step]) for start in range(0, len(tokens), step)]


def cost(seen: Seen, held: Tensor, tokens: int, *, whole: Iterable[Tensor], rows: Tensor) -> Cost:
    """The cost of each error of one matrix.

    held: float32 [errors, rows, cols], the errors of the rows that products saw
    whole: float32 [rows, cols] each, the errors of all rows
    rows: int64, the numbers of the former
    tokens: number of tokens of the pass
    """
    direct = 0.5 * np.square(seen.products, dtype=np.float64).sum(0) / tokens
    by_row, columns = torch.from_numpy(seen.rows), torch.from_numpy(seen.columns)
    share = columns / columns.sum().clamp(min=_SMALL)
    diagonal = _diagonal(whole, by_row, share, tokens)
    if len(rows) < len(by_row):
        own = _diagonal(held, by_row[rows.cpu()], share, tokens)
        direct = direct * np.divide(diagonal, own, out=np.ones_like(own), where=own > 0)
    return Cost(direct, diagonal, len(seen.products))


def _diagonal(errors: Iterable[Tensor], rows: Tensor, share: Tensor, tokens: int) -> np.ndarray:
    """float64 [errors]; rows, share: sums of squared gradients of rows, and the share of each column"""
    energy = [float(rows @ (each.cpu().double().square() @ share)) for each in errors]
    return 0.5 * np.array(energy) / tokens
