"""TensorRT-LLM: it reads ModelOpt's unified checkpoints, and folders in 16 bits. It needs an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path

from bitsmith.handover.runtime import Prepared, Runtime, flag
from bitsmith.handover.subject import FLOATS, Subject

_GPU = "TensorRT-LLM runs on an NVIDIA GPU only"


def _prepare(subject: Subject, folder: Path) -> Prepared:
    command = ("trtllm-serve", str(subject.path), *flag("backend", "pytorch"))
    command += flag("max_seq_len", str(subject.context))
    return Prepared(command, notes=(f"{_GPU}; this file was not tried there",))


RUNTIME = Runtime(
    "tensorrt-llm",
    "TensorRT-LLM",
    frozenset({FLOATS, "modelopt"}),
    "bitsmith quantize MODEL --to modelopt/fp8 --calibration default",
    _prepare,
    "see nvidia.github.io/TensorRT-LLM",
    unchecked=f"{_GPU}, and bitsmith has no check for it; its layout is held against the published one in tests",
)
