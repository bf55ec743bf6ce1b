"""Freezes what llama.cpp's converter writes for the models of tests/families.py: keys and shapes of tensors.

usage: python -m tests.oracle.freeze_converter LLAMA_CPP [NAME ...] (a source tree of build 11434; all models, or some);
writes llama_converter.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitsmith.containers.gguf.reader import GgufSource
from tests.families import MODELS, folder_of


def frozen(name: str, folder: Path, work: Path) -> dict[str, Any]:
    """Keys of the architecture and shapes of tensors, of a file of llama.cpp's converter."""
    import conversion
    import gguf
    from conversion.base import ModelBase, ModelType, get_model_architecture

    made = conversion.get_model_class(get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT))
    # the tokenizer is the reference model's, whatever the family's class expects
    members = {"model_arch": made.model_arch, "set_vocab": lambda self: self._set_vocab_gpt2(), "no_mtp": True}
    with torch.inference_mode():
        model = type(made.__name__, (made,), members)(folder, gguf.LlamaFileType.ALL_F32, work / f"{name}.gguf")
        if hasattr(model, "impl"):
            type(model.impl).set_vocab = members["set_vocab"]
        model.write()
    with GgufSource(work / f"{name}.gguf") as source:
        own = ("general.", "tokenizer.")
        keys = {key: np.asarray(value).tolist() for key, value in source.metadata.items() if not key.startswith(own)}
        keys["general.architecture"] = source.metadata["general.architecture"]
        return {"keys": keys, "tensors": {info.name: list(info.shape) for info in source.tensors.values()}}


def any_vocabulary() -> None:
    """Let the converter take the reference model's tokenizer for any family's."""
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"


def main() -> None:
    """Write the file."""
    sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/gguf-py"]
    any_vocabulary()
    path = Path(__file__).parent / "llama_converter.json"
    known = json.loads(path.read_text()) if sys.argv[2:] else {}
    with tempfile.TemporaryDirectory() as work:
        names = sys.argv[2:] or MODELS
        made = {name: frozen(name, folder_of(name, Path(work) / name)[0], Path(work)) for name in names}
    found = {name: made.get(name) or known[name] for name in MODELS}
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(each)}" for name, each in found.items())
    path.write_text("{\n" + text + "\n}\n")


if __name__ == "__main__":
    main()
