"""Quantized layers inside of torch and transformers: `bitsmith.torch.quantize_module` and more.

Importing this module needs torch. Where transformers is installed, its `from_pretrained` then loads what
`bitsmith quantize MODEL --to native/...` wrote.
"""

from __future__ import annotations

from bitsmith.torch_modules.census import Census, CensusRow
from bitsmith.torch_modules.linear import QuantLinear
from bitsmith.torch_modules.quantize import quantize_module
from bitsmith.torch_modules.stored_weight import StoredWeight

__all__ = ["Census", "CensusRow", "QuantLinear", "StoredWeight", "quantize_module"]
