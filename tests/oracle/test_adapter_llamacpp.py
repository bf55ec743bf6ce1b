"""Adapters as GGUF files, in llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bitsmith
from tests.adapters import make_adapter
from tests.oracle.llama import load


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


@pytest.mark.parametrize("file_type", ["gguf/f32", "q8_0"])
def test_llamacpp_gives_our_logits(tmp_path: Path, file_type: str) -> None:
    adapter = make_adapter(tmp_path / "a", "reference", size=0.1)
    file = tmp_path / "reference.gguf"
    make = bitsmith.convert if file_type.endswith("f32") else bitsmith.quantize
    make("reference", to=file_type, out=file)
    lora = bitsmith.convert_adapter(adapter, out=tmp_path / "lora.gguf")
    tokens = np.random.default_rng(3).integers(4, 4096, 96)
    llama = load(file)
    theirs, plain = llama.logits(tokens, adapter=lora), llama.logits(tokens)
    llama.close()
    ours = bitsmith.load(file, adapter=adapter, kernel="torch").logits(tokens[None])[0]
    expected, found = _log_softmax(theirs), _log_softmax(ours)
    kld = float((np.exp(expected) * (expected - found)).sum(-1).mean())
    away = float((np.exp(expected) * (expected - _log_softmax(plain))).sum(-1).mean())
    assert abs(kld) < (1e-6 if file_type.endswith("f32") else 5e-4)  # llama.cpp rounds inputs of Q8_0 products
    assert away > 0.1
