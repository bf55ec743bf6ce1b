"""What a model is distilled from: the hidden states that the original has behind its last block, and its head.

They give all of the original's logits again, and take less memory than these. The student's loss is the divergence
KL(original || student) over the whole vocabulary; beside it, its hidden states come near to the original's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitsmith.calibration.hidden import HiddenStates


def kept_bytes(tokens: int, hidden: int) -> int:
    """Bytes of the kept hidden states of so many tokens, float32."""
    return 4 * tokens * hidden


@dataclass(frozen=True)
class LastStates:
    """The original behind its last block.

    hidden: its hidden states for all windows, float32 [windows, context, hidden], in memory or in a temporary file
    head: hidden states float32 [windows, n, hidden] -> logits float32 [windows, n, vocab]
    """

    hidden: HiddenStates
    head: Callable[[Tensor], Tensor]

    def states(self, windows: np.ndarray) -> Tensor:
        """Hidden states of some windows, by number, float32 [windows, context, hidden]."""
        return self.hidden[windows]

    def log_probs(self, windows: np.ndarray) -> Tensor:
        """Log-probabilities of all tokens, float32 [windows, context, vocab]."""
        with torch.no_grad():
            return self.head(self.states(windows)).log_softmax(-1)

    def divergence(self, windows: np.ndarray, logits: Tensor) -> Tensor:
        """Mean divergence of the student's predictions for some windows, by number, in nats a token.

        logits: float32 [windows, context, vocab]
        """
        found: Tensor = _Divergence.apply(logits, self.log_probs(windows).to(logits.device))  # type: ignore[no-untyped-call]
        return found

    def distance(self, windows: np.ndarray, hidden: Tensor) -> Tensor:
        """Squared distance of the student's hidden states, as a share of the original's square; mean over tokens.

        hidden: float32 [windows, context, hidden]
        """
        wanted = self.states(windows).to(hidden.device)
        size = wanted.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
        found: Tensor = ((hidden - wanted).square().sum(-1) / size).mean()
        return found


class _Divergence(torch.autograd.Function):
    """KL(original || student), with its gradient in closed form: by a logit it is q - p, the two probabilities."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, known: Tensor) -> Tensor:
        logs = logits.log_softmax(-1)
        probs = known.exp()
        found = (known - logs).mul_(probs).sum(-1)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(logs.exp_().sub_(probs).div_(found.numel()))
        return found.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * above, None
