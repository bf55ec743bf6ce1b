"""GPTQ block by block, from the command's words to a finished file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.errors import UsageError

WORDS = {"calibration": "default", "calibration_tokens": 2048, "calibration_context": 128}


def logits(model: Path, tokens: np.ndarray) -> np.ndarray:
    return bitsmith.load(model).logits(tokens).astype(np.float64)


def test_outputs_lose_less_than_by_nearest(tiny: Path, tmp_path: Path) -> None:
    tokens = np.random.default_rng(7).integers(5, 4000, (4, 64))
    original = logits(tiny, tokens)
    errors = {}
    for method in ("nearest", "gptq"):
        made = bitsmith.quantize(tiny, to="native/int3-g32", method=method, out=tmp_path / method, **WORDS)
        errors[method] = float(((logits(made.out, tokens) - original) ** 2).mean())
        assert bitsmith.inspect(made.out, verify=True).problems == ()
    assert errors["gptq"] < 0.97 * errors["nearest"]


@pytest.mark.parametrize("to", ["q4_k_m", "gptq/int4", "awq/int4", "compressed/w4a16", "native/int8-tensor"])
def test_every_container_takes_its_codes(tiny: Path, tmp_path: Path, to: str) -> None:
    made = bitsmith.quantize(tiny, to=to, method="gptq", out=tmp_path / "out.gguf", **WORDS)
    assert made.size == sum(path.stat().st_size for path in made.paths)
    assert bitsmith.inspect(made.out, verify=True).problems == ()
    tokens = np.random.default_rng(7).integers(5, 4000, (2, 32))
    original, ours = logits(tiny, tokens), logits(made.out, tokens)
    assert ((ours - original) ** 2).mean() < 0.1 * original.var()


def test_same_seed_same_bytes(tiny: Path, tmp_path: Path) -> None:
    first = bitsmith.quantize(tiny, to="q4_0", method="gptq", out=tmp_path / "a.gguf", threads=1, **WORDS)
    second = bitsmith.quantize(tiny, to="q4_0", method="gptq", out=tmp_path / "b.gguf", threads=2, **WORDS)
    assert first.out.read_bytes() == second.out.read_bytes()


def test_it_needs_a_text(tiny: Path, tmp_path: Path) -> None:
    imatrix = tmp_path / "im.gguf"
    bitsmith.imatrix(tiny, out=imatrix, calibration="default", calibration_tokens=512, calibration_context=64)
    with pytest.raises(UsageError, match="importance file"):
        bitsmith.quantize(tiny, to="q4_0", method="gptq", calibration=str(imatrix), dry_run=True)


def test_the_built_in_text_where_none_is_named(tiny: Path) -> None:
    planned = bitsmith.quantize(tiny, to="q4_0", method="gptq", dry_run=True)
    assert planned.calibration is not None
    assert planned.calibration_memory > 0
