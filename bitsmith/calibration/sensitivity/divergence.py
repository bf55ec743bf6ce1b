"""The true divergence of a model with rounded matrices, and its gradient."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.sensitivity.fisher import batches
from bitsmith.calibration.sensitivity.meter import Errors, GradientMeter
from bitsmith.calibration.sensitivity.watched import WatchedModel
from bitsmith.system.progress import Progress, Report, silent


class Divergence:
    """KL(original || rounded) on one text, mean over its tokens, in nats.

    tokens: int64 [windows, n]
    """

    def __init__(self, model: WatchedModel, tokens: np.ndarray, hidden: Tensor | None = None) -> None:
        """Keeps the original's hidden states after the last block.

        hidden: float32 [windows, n, hidden], these states; None: the original runs once
        """
        self._model, self.tokens = model, tokens
        self._batches = batches(tokens, model.config.vocab)
        model.exchange({})
        if hidden is None:
            self._hidden = [model.hidden(batch) for _, batch in self._batches]
        else:
            self._hidden = [hidden[start : start + len(batch)] for start, batch in self._batches]

    def of(self, values: Mapping[str, Tensor]) -> float:
        """With these matrices in place of the original's, by name."""
        total = 0.0
        for (_, batch), hidden in zip(self._batches, self._hidden, strict=True):
            with torch.no_grad():
                theirs = self._original(hidden)
                self._model.exchange(values)
                ours = self._model.logits(self._model.hidden(batch)).log_softmax(-1)
                total += float((theirs.exp() * (theirs - ours)).sum(dtype=torch.float64))
        self._model.exchange({})
        return total / self.tokens.size

    def gradient(self, values: Mapping[str, Tensor], errors: Errors, report: Report = silent) -> dict[str, np.ndarray]:
        """The products of the divergence's gradient at these matrices with errors: float64 [errors] by name.

        errors: see `GradientMeter`
        """
        meter = GradientMeter(errors, self._model.counts)
        for (start, batch), hidden in zip(self._batches, self._hidden, strict=True):
            report(Progress("interactions", start, len(self.tokens), "windows"))
            with torch.no_grad():
                p = self._original(hidden).exp()
            self._model.exchange(values)
            meter.begin(len(batch))
            self._model.backward(batch, lambda logits, p=p: logits.softmax(-1) - p, meter)  # type: ignore[misc]
        self._model.exchange({})
        return {name: each.products.sum(0, dtype=np.float64) / self.tokens.size for name, each in meter.seen().items()}

    def _original(self, hidden: Tensor) -> Tensor:
        self._model.exchange({})
        return self._model.logits(hidden).log_softmax(-1)
