"""Words of options, and names in an adapter's folder."""

from __future__ import annotations

ALL = "all"  # of --targets: every linear layer of the decoder
CHECKPOINTS = "checkpoints"
