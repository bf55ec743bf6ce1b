"""PEFT's LoRA layer for our packed linear. Importing this module needs peft."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear

from bitsmith.errors import UnsupportedError
from bitsmith.torch_modules.linear import QuantLinear

MERGING_REFUSED = (
    "an adapter cannot be merged into quantized weights: rounding the sum again to so few bits loses most of what was "
    "learned. Merge it into the 16-bit original: `bitsmith merge BASE ADAPTER --to q4_k_m`."
)


class QuantLoraLinear(LoraLinear):  # type: ignore[misc]
    """y = W x + scale * B(A x) with W stored as codes (Hu et al. 2021; over 4 bits: Dettmers et al. 2023, QLoRA)."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises UnsupportedError: codes cannot take an adapter in."""
        raise UnsupportedError(MERGING_REFUSED)

    def unmerge(self) -> None:
        """Nothing was merged."""

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """scale * B A, float32 [outputs, inputs]."""
        up, down = self.lora_B[adapter].weight, self.lora_A[adapter].weight
        delta: torch.Tensor = self.scaling[adapter] * (up.float() @ down.float())
        return delta


def register(config: Any) -> None:
    """Tell a `peft.LoraConfig` which layer adapts a packed linear."""
    config._register_custom_module({QuantLinear: QuantLoraLinear})
