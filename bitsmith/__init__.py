"""bitsmith: quantize large language models: make the file, prove what it lost, run it."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitsmith.api import (
        QuantizeConfig,
        bench,
        compare,
        convert,
        convert_adapter,
        evaluate,
        hand_over,
        imatrix,
        inspect,
        list_models,
        load,
        merge,
        plan,
        publish,
        pull,
        quantize,
        quantize_each,
        remove,
        tune_qat,
        tune_qlora,
    )
    from bitsmith.errors import BitsmithError
    from bitsmith.runtime.sampling import Sampling


__all__ = [
    "BitsmithError",
    "QuantizeConfig",
    "Sampling",
    "__version__",
    "bench",
    "compare",
    "convert",
    "convert_adapter",
    "evaluate",
    "hand_over",
    "imatrix",
    "inspect",
    "list_models",
    "load",
    "merge",
    "plan",
    "publish",
    "pull",
    "quantize",
    "quantize_each",
    "remove",
    "tune_qat",
    "tune_qlora",
]


logging.getLogger("bitsmith").addHandler(logging.NullHandler())  # the program that uses the library decides


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Public functions are imported when first used, so that `import bitsmith` costs nothing."""
    homes = {
        "BitsmithError": "bitsmith.errors",
        "Sampling": "bitsmith.runtime.sampling",
        "__version__": "bitsmith.version",
    }
    if name in __all__:
        return getattr(import_module(homes.get(name, "bitsmith.api")), name)
    raise AttributeError(f"module 'bitsmith' has no attribute {name!r}")
