"""Quantized layers inside of torch and transformers: `bitsmith.torch.quantize_module` and more.

Importing this module needs torch. Where transformers is installed, its `from_pretrained` then loads what
`bitsmith quantize MODEL --to native/...` wrote.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec

from bitsmith.torch_modules.census import Census, CensusRow
from bitsmith.torch_modules.dense import dequantize_module
from bitsmith.torch_modules.linear import QuantLinear
from bitsmith.torch_modules.loading import from_pretrained
from bitsmith.torch_modules.quantize import quantize_module
from bitsmith.torch_modules.stored_weight import StoredWeight

if find_spec("transformers") is not None:
    try:
        import_module("bitsmith.torch_modules.hf_quantizer")  # registers `quant_method: "bitsmith"` there
    except ImportError as error:
        logging.getLogger("bitsmith").warning("transformers cannot load folders of bitsmith, it is too old: %s", error)

__all__ = ["Census", "CensusRow", "QuantLinear", "StoredWeight", "dequantize_module", "from_pretrained"]
__all__ += ["quantize_module"]
