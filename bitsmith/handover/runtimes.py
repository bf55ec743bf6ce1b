"""The runtimes by name: one visible table.

A new runtime is one file with a `Runtime` called RUNTIME, and one row here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bitsmith.errors import UsageError, quoted

if TYPE_CHECKING:
    from bitsmith.handover.runtime import Runtime

RUNTIMES: dict[str, str] = {  # name -> its module, imported when first used
    "llama.cpp": "bitsmith.handover.llamacpp",
    "ollama": "bitsmith.handover.ollama",
    "lm-studio": "bitsmith.handover.lm_studio",
    "vllm": "bitsmith.handover.vllm",
    "transformers": "bitsmith.handover.transformers",
    "mlx": "bitsmith.handover.mlx",
    "tensorrt-llm": "bitsmith.handover.tensorrt_llm",
}
_SPELLED = {"llamacpp": "llama.cpp", "lmstudio": "lm-studio", "mlx-lm": "mlx", "trtllm": "tensorrt-llm"}


def find_runtime(name: str) -> Runtime:
    """The runtime of that name. Raises UsageError if it is unknown."""
    key = _SPELLED.get(name.strip().lower(), name.strip().lower())
    if key not in RUNTIMES:
        raise UsageError(f"--for={quoted(name)}: unknown; expected {', '.join(RUNTIMES)}.")
    found: Runtime = vars(import_module(RUNTIMES[key]))["RUNTIME"]
    return found
