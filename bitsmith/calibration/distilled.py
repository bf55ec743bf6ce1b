"""What a model is distilled from: the original's logits, as the largest ones of each token and the rest's mass.

The student's loss is the divergence KL(original || student) over these K tokens and one event for all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.hidden import HiddenStates
from bitsmith.system.progress import Progress, Report, silent

TOP = 256  # tokens that are kept for each position: 2 KB
_SMALL = 1e-7  # least mass of the rest, so that its logarithm is finite


@dataclass(frozen=True)
class TopLogits:
    """The original's predictions for all windows.

    ids: int32 [windows, context, K], the most probable tokens
    log_probs: float32, the same shape, their log-probabilities
    """

    ids: Tensor
    log_probs: Tensor

    @classmethod
    def of(
        cls, hidden: HiddenStates, logits: Callable[[Tensor], Tensor], vocab: int, report: Report = silent
    ) -> TopLogits:
        """From the hidden states after the original's last block.

        logits: hidden states float32 [windows, context, hidden] -> float32 [windows, context, vocab]
        """
        windows, context, _ = hidden.shape
        top = min(TOP, vocab)
        ids = torch.empty((windows, context, top), dtype=torch.int32)
        found = torch.empty((windows, context, top), dtype=torch.float32)
        with torch.no_grad():
            for at in hidden.batches():
                report(Progress("distill", at.start, windows, "windows"))
                values, tokens = logits(hidden.read(at)).log_softmax(-1).topk(top, dim=-1)
                ids[at], found[at] = tokens.to(torch.int32).cpu(), values.cpu()
        return cls(ids, found)

    def divergence(self, windows: np.ndarray, logits: Tensor) -> Tensor:
        """Mean divergence of the student's predictions for some windows, by number, in nats a token.

        logits: float32 [windows, context, vocab]
        """
        known = self.log_probs[windows].to(logits.device)
        theirs = logits.log_softmax(-1).gather(-1, self.ids[windows].long().to(logits.device))
        probs = known.exp()
        inside = (probs * (known - theirs)).sum(-1)
        rest = (1.0 - probs.sum(-1)).clamp(min=_SMALL)
        left = (1.0 - theirs.exp().sum(-1)).clamp(min=_SMALL)
        found: Tensor = (inside + rest * (rest.log() - left.log())).mean()
        return found
