"""Adapters in peft: the same logits as ours, over 16-bit and over quantized weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bitsmith
import bitsmith.torch
from tests.adapters import make_adapter
from tests.tiny import REFERENCE

pytest.importorskip("peft")
pytest.importorskip("transformers")


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


@pytest.mark.parametrize("format", ["", "nf4", "int4-g64"])
def test_peft_gives_our_logits(tmp_path: Path, format: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = make_adapter(tmp_path / "a", REFERENCE, size=0.1)
    file: Path = REFERENCE
    if format:
        file = tmp_path / "quantized"
        rules = ["token_embd|embed_tokens|lm_head|output.weight=bf16"]
        bitsmith.quantize(REFERENCE, to=f"native/{format}", rules=rules, out=file)
        base = bitsmith.torch.from_pretrained(REFERENCE, format, dtype="float32")
    else:
        base = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32)
    tokens = np.random.default_rng(3).integers(4, 4096, (1, 96))
    with torch.no_grad():
        plain = _log_softmax(base(torch.tensor(tokens)).logits.numpy())
        theirs = _log_softmax(PeftModel.from_pretrained(base, adapter).eval()(torch.tensor(tokens)).logits.numpy())
    for kernel in ("torch", "exact"):
        found = _log_softmax(bitsmith.load(file, adapter=adapter, kernel=kernel).logits(tokens))
        assert abs(float((np.exp(theirs) * (theirs - found)).sum(-1).mean())) < 1e-5
    assert float((np.exp(theirs) * (theirs - plain)).sum(-1).mean()) > 0.1
