"""Freezes what llama.cpp's converter writes for the models of tests/families.py that take images: text and mmproj.

usage: python -m tests.oracle.freeze_mmproj LLAMA_CPP (a source tree of build 11434); writes llama_mmproj.json
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitsmith.containers.gguf.reader import GgufSource
from tests.families import WRAPPERS, wrapper_of
from tests.oracle.freeze_converter import any_vocabulary
from tests.oracle.freeze_converter import frozen as text_part

KNOWN = [name for name in WRAPPERS if name != "gemma4"]  # the others' towers are not known


def content(path: Path) -> dict[str, Any]:
    """Keys, and type, shape and hash of each tensor, of an mmproj file."""
    with GgufSource(path) as source:
        own = ("general.name", "general.size_label", "general.quantization_version", "bitsmith.")
        keys = {key: np.asarray(value).tolist() for key, value in source.metadata.items() if not key.startswith(own)}
        tensors = {}
        for name, info in source.tensors.items():
            stored = source.packed(name).parts["data"].tobytes()
            tensors[name] = [info.layout, list(info.shape), hashlib.sha256(stored).hexdigest()]
    return {"keys": keys, "tensors": tensors}


def frozen(name: str, work: Path) -> dict[str, Any]:
    """What the converter writes."""
    import conversion
    import gguf
    from conversion.base import ModelBase, ModelType, get_model_architecture

    folder, _ = wrapper_of(name, work / name)
    text = text_part(name, folder, work)
    found = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.MMPROJ)
    made = conversion.get_model_class(found, mmproj=True)
    with torch.inference_mode():
        made(folder, gguf.LlamaFileType.MOSTLY_F16, work / f"{name}.gguf").write()
    return content(work / f"{name}.gguf") | {"text": text}


def main() -> None:
    """Write the file."""
    sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/gguf-py"]
    any_vocabulary()
    with tempfile.TemporaryDirectory() as work:
        found = {name: frozen(name, Path(work)) for name in KNOWN}
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(each)}" for name, each in found.items())
    (Path(__file__).parent / "llama_mmproj.json").write_text("{\n" + text + "\n}\n")


if __name__ == "__main__":
    main()
