"""Models with an adapter give the logits of weights with the adapter added."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import bitsmith
from bitsmith.models.adapter import read_adapter
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.system.core import core
from tests.adapters import make_adapter
from tests.tiny import make_folder

KERNELS = ["torch", *(["exact", "int16", "int8"] if core() is not None else [])]
TOKENS = np.random.default_rng(0).integers(4, 4096, (2, 40))


def merged(folder: Path, base: Path, adapter: Path) -> Path:
    """The base with the adapter added, in float32."""
    checkpoint = open_checkpoint(base)
    layers = read_adapter(adapter, checkpoint).layers
    tensors = {}
    for name, values in load_file(base / "model.safetensors").items():
        wide = values.astype(np.float32)
        low = layers.get((checkpoint.names.gguf(name) or "").removesuffix(".weight"))
        tensors[name] = wide if low is None else wide + low.delta(0, len(wide))
    return make_folder(folder, tensors=tensors, torch_dtype="float32")


@pytest.mark.parametrize("kernel", KERNELS)
def test_logits_are_those_of_added_weights(tiny: Path, tmp_path: Path, kernel: str) -> None:
    adapter = make_adapter(tmp_path / "a", tiny, rank=5)
    wanted = bitsmith.load(merged(tmp_path / "merged", tiny, adapter), kernel="torch").logits(TOKENS)
    found = bitsmith.load(tiny, adapter=adapter, kernel=kernel).logits(TOKENS)
    plain = bitsmith.load(tiny, kernel=kernel).logits(TOKENS)
    near = 2e-4 if kernel in ("torch", "exact") else 0.1
    assert np.abs(found - wanted).max() < near * np.abs(wanted).max()
    assert np.abs(plain - wanted).max() > np.abs(wanted).max() * 0.2


@pytest.mark.parametrize("kernel", KERNELS[:2])
def test_a_gguf_file_with_an_adapter(tiny: Path, tmp_path: Path, kernel: str) -> None:
    adapter, file = make_adapter(tmp_path / "a", tiny), tmp_path / "tiny.gguf"
    bitsmith.convert(tiny, to="gguf/bf16", out=file)
    wanted = bitsmith.load(tiny, adapter=adapter, kernel="torch").logits(TOKENS)
    found = bitsmith.load(file, adapter=adapter, kernel=kernel).logits(TOKENS)
    assert np.abs(found - wanted).max() < 2e-4 * np.abs(wanted).max()


@pytest.mark.skipif(core() is None, reason="needs the C++ core")
def test_packed_weights_and_single_rows(tiny: Path, tmp_path: Path) -> None:
    adapter, file = make_adapter(tmp_path / "a", tiny), tmp_path / "tiny.gguf"
    bitsmith.quantize(tiny, to="q8_0", out=file)
    wanted = bitsmith.load(file, adapter=adapter, kernel="torch")
    found = bitsmith.load(file, adapter=adapter, kernel="int16")
    for tokens in (TOKENS, TOKENS[:1, :1], TOKENS[:1, :3]):
        ours, theirs = found.logits(tokens), wanted.logits(tokens)
        assert np.abs(ours - theirs).max() < 5e-3 * np.abs(theirs).max()
    spoken = [model.generate("Once upon", max_tokens=6, temperature=0) for model in (wanted, found)]
    assert spoken[0] == spoken[1]


def test_a_format_and_an_adapter_at_once(tiny: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a", tiny)
    plain = bitsmith.load(tiny, format="nf4", kernel="torch").logits(TOKENS)
    found = bitsmith.load(tiny, format="nf4", adapter=adapter, kernel="torch").logits(TOKENS)
    wanted = bitsmith.load(tiny, adapter=adapter, kernel="torch").logits(TOKENS)
    assert np.abs(found - wanted).max() < np.abs(found - plain).max()
