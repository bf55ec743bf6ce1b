"""What is asked of a model when it is loaded: a format for its linear layers, rounded inputs, a type to compute in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.errors import BitsmithError, TensorError, UnsupportedError, UsageError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.models.overrides import Overrides
from bitsmith.quant.tensor import TensorInfo
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.load import choose_kernel, computing
from bitsmith.runtime.overridden import rounded
from bitsmith.system.core import core
from tests.tiny import LAYERS, make_folder

TOKENS = np.random.default_rng(3).integers(2, 4096, (1, 12))
NEEDS_CORE = pytest.mark.skipif(core() is None, reason="needs the C++ core")


def logits(model: Any, **words: Any) -> np.ndarray:
    return np.asarray(bitsmith.load(model, **words).logits(TOKENS))


@pytest.mark.parametrize("format", ["nf4", "fp4-dq", "int4-channel", "int8-tensor", "fp8"])
def test_a_format_while_loading_gives_the_logits_of_a_file(tiny: Path, tmp_path: Path, format: str) -> None:
    made = bitsmith.quantize(tiny, to=f"native/{format}", out=tmp_path / "file").out
    assert np.array_equal(
        logits(tiny, format=format, kernel="torch"), logits(made, compute_dtype="float32", kernel="torch")
    )


def test_head_and_embedding_stay(tiny: Path) -> None:
    weights = bitsmith.load(tiny, format="nf4", kernel="torch").decoder.weights
    kinds = {type(weights.output.prepared).__name__, type(weights.embedding.prepared).__name__}
    assert kinds == {"Tensor"}
    for block in weights.blocks:
        assert {type(linear.prepared).__name__ for linear in block.linears.values()} == {"StoredMatrix"}
    dense = bitsmith.load(tiny, kernel="torch").decoder.weights.blocks[0].linears["ffn_up"]
    packed = weights.blocks[0].linears["ffn_up"]
    assert packed.nbytes < dense.nbytes / 6


@NEEDS_CORE
def test_the_core_multiplies_what_was_rounded_while_loading(tiny: Path) -> None:
    expected = logits(tiny, format="nf4", kernel="torch")
    assert np.abs(logits(tiny, format="nf4", compute_dtype="float32") - expected).max() < 1e-4 * np.abs(expected).max()
    checkpoint = _with(open_checkpoint(tiny), Overrides(format="fp8"))
    assert choose_kernel(checkpoint, None, default="int16") == "torch"  # the core has no products with FP8
    for name in ("nf4", "fp4", "fp4-dq"):
        assert choose_kernel(_with(checkpoint, Overrides(format=name)), None, default="int16") == "int16"


def _with(checkpoint: Any, overrides: Overrides) -> Any:
    from dataclasses import replace

    return replace(checkpoint, overrides=overrides)


def test_rows_are_rounded_as_they_are_read() -> None:
    """Never more than the rows that were asked for, so that memory holds the model and one slab."""
    w = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    seen = []

    def rows(start: int, stop: int) -> np.ndarray:
        seen.append(stop - start)
        return w[start:stop]

    weight = rounded("blk.0.ffn_up.weight", Weight(TensorInfo("ffn_up", (64, 128), "bf16", 0), rows), "nf4")
    assert weight.info.layout == "bitsmith/nf4"
    assert weight.info.nbytes == 64 * (128 // 2 + 2 * 4)
    tensor = weight.codes(8, 16)
    assert tensor is not None
    assert np.array_equal(weight.rows(8, 16), tensor.values())
    assert max(seen) == 8


def test_what_cannot_be_rounded(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="bnb/nf4", out=tmp_path / "made").out
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_q\.weight is already bnb/nf4, so it cannot be loaded as"):
        bitsmith.load(made, format="int4", kernel="torch")
    with pytest.raises(UnsupportedError, match="needs a row length that divides by 256"):
        bitsmith.load(tiny, format="nf4-g256", kernel="torch")
    with pytest.raises(UsageError, match="'nf5' is not a format"):
        bitsmith.load(tiny, format="nf5")
    info = TensorInfo("x", (4, 64), "f32", 0)
    bad = Weight(info, lambda start, stop: np.full((stop - start, 64), np.inf, np.float32))
    with pytest.raises(TensorError, match=r"blk\.0\.x: rows 0 to 4 hold NaN or infinite weights"):
        rounded("blk.0.x", bad, "nf4").codes(0, 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_types_to_compute_in(tiny: Path, tmp_path: Path, dtype: str) -> None:
    """Both factors are rounded to the type; sums are float32."""
    made = bitsmith.quantize(tiny, to="bnb/nf4", out=tmp_path / "made").out
    exact = logits(made, kernel="torch")
    found = logits(made, compute_dtype=dtype, kernel="torch")
    error = np.abs(found - exact).max() / np.abs(exact).max()
    low, high = {"float32": (0, 1e-5), "bfloat16": (1e-4, 0.1), "float16": (1e-5, 0.01)}[dtype]
    assert low <= error < high


def test_wrong_types_and_devices(tiny: Path) -> None:
    for words, said in (
        ({"compute_dtype": "int8"}, "unknown; expected float32, bfloat16, float16"),
        ({"compute_dtype": "bfloat16", "kernel": "int8"}, 'is for kernel="torch", not int8'),
        ({"compute_dtype": "float32", "kernel": "int8"}, "is for kernel=.exact. and torch"),
        ({"device": "tpu"}, "unknown; expected cpu, cuda"),
        ({"inputs": "int4"}, "unknown; expected none, int8, llm.int8, fp8"),
        ({"inputs": "llm.int8:0"}, "the threshold must be a positive number"),
    ):
        with pytest.raises(UsageError, match=said):
            bitsmith.load(tiny, **words)
    assert computing("float32", None, None, "int16")[2] == "exact"
    assert computing("bfloat16", None, None, "exact")[1] == "torch"
    assert computing(None, None, None, "exact")[1:] == (None, "exact")


def test_inputs_that_are_asked_for(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="bnb/int8", out=tmp_path / "made").out
    own = logits(made, kernel="torch")
    assert np.array_equal(logits(made, kernel="torch", inputs="llm.int8:6"), own)  # as the file says
    assert not np.array_equal(logits(made, kernel="torch", inputs="none"), own)
    linears = bitsmith.load(tiny, kernel="torch", inputs="fp8").decoder.weights.blocks[0].linears
    assert {str(linear.input_rounding) for linear in linears.values()} == {"fp8, per token"}
    assert len(linears) == 7
    assert LAYERS == 2
    said = str(bitsmith.evaluate(made, against=tiny, context=32, max_windows=2, kernel="torch", inputs="none"))
    assert "KLD" in said


@NEEDS_CORE
def test_the_core_says_what_it_does_not_round(tiny: Path) -> None:
    with pytest.raises(BitsmithError, match="the C\\+\\+ core does not round inputs as asked for"):
        bitsmith.load(tiny, inputs="fp8", kernel="exact")


def test_the_format_of_a_model_of_another_width(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "odd", hidden_size=96)
    with pytest.raises(UnsupportedError, match="needs a row length that divides by 64"):
        bitsmith.load(folder, format="nf4", kernel="torch")
