"""bitsmith: quantize large language models: make the file, prove what it lost, run it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitsmith.api import evaluate, inspect, load, quantize
    from bitsmith.errors import BitsmithError

__version__ = "0.1.0"
__all__ = ["BitsmithError", "__version__", "evaluate", "inspect", "load", "quantize"]


def __getattr__(name: str) -> Any:
    """Public functions are imported when first used, so that `import bitsmith` costs nothing."""
    if name == "BitsmithError":
        from bitsmith.errors import BitsmithError

        return BitsmithError
    if name in __all__:
        from bitsmith import api

        return vars(api)[name]
    raise AttributeError(f"module 'bitsmith' has no attribute {name!r}")
