"""Names of an adapter's files, and words of its options."""

from __future__ import annotations

ALL = "all"  # of --targets: every linear layer of the decoder
CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "bitsmith.json"
CHECKPOINTS = "checkpoints"
