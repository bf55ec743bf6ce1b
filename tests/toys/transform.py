"""A toy transform: every column of the weights is doubled, and its producer halved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bitsmith.calibration.stats import Stats
from bitsmith.calibration.transforms import TransformRow
from bitsmith.calibration.transforms.base import Rescaling
from bitsmith.models.arch.groups import LinearGroup
from bitsmith.quant.formats.base import Format


@dataclass(frozen=True)
class Doubling:
    """See `bitsmith.calibration.transforms.base.Transform`."""

    needs: frozenset[str] = frozenset()

    def __call__(
        self,
        group: LinearGroup,
        weights: Mapping[str, np.ndarray],
        formats: Mapping[str, Format],
        stats: Stats,
        rows: np.ndarray,
    ) -> Rescaling:
        """The factor 2 for every column."""
        return Rescaling(group, np.full(rows.size, 2.0, np.float32), 0.0, 0.0, "doubled")


ROW = TransformRow("doubling", lambda inputs: Doubling())
