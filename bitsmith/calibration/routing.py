"""Counts the tokens that routers send to experts during a calibration."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bitsmith.models.arch.config import ModelConfig
from bitsmith.recipe.coverage import Coverage
from bitsmith.runtime.decoder import Routing


class RouterCounts:
    """Tokens that each expert got so far, by layer. every: see `Routing`"""

    def __init__(self, config: ModelConfig, *, every: bool = False) -> None:
        self._experts = 0 if config.experts is None else config.experts.count
        self._found: dict[int, Tensor] = {}
        self.every = every

    @property
    def routing(self) -> Routing:
        """For a pass that counts each token once."""
        return Routing(self.every, self._add)

    def _add(self, layer: int, chosen: Tensor) -> None:
        counts = torch.bincount(chosen.reshape(-1).cpu(), minlength=self._experts)
        self._found[layer] = self._found[layer] + counts if layer in self._found else counts

    @property
    def counts(self) -> Mapping[int, np.ndarray]:
        """int64 [experts] by layer."""
        return {layer: counts.numpy() for layer, counts in self._found.items()}

    def restore(self, counts: Mapping[int, np.ndarray]) -> None:
        """Go on behind counts that `counts` gave."""
        self._found = {layer: torch.from_numpy(each.copy()) for layer, each in counts.items()}

    def coverage(self, tokens: int) -> Coverage | None:
        """The coverage of a text of so many tokens; None for a model without experts."""
        return Coverage(self.counts, tokens, self.every) if self._found else None
