"""LLM.int8() on the C++ core: what `InputRounding` defines, in products of one and many rows, and in whole models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.errors import UnsupportedError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.models.overrides import Overrides
from bitsmith.quant.formats import get_format
from bitsmith.quant.formats.rowabsmax import RowAbsmax
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.tensor import QuantTensor
from bitsmith.runtime.core_grids import grid_layout, grid_rows
from bitsmith.runtime.core_loader import load_core
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.load import choose_kernel
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import load_weights
from bitsmith.system.core import core
from tests.core.test_grids import weights
from tests.core.test_run import CONFIG, ISAS, TOKENS, spread
from tests.tiny import make_folder

pytestmark = pytest.mark.skipif(core() is None, reason="no C++ core")


def inputs(count: int, cols: int, large: int) -> np.ndarray:
    """Rows of which some have columns beyond 6, and one is zero."""
    rng = np.random.default_rng(count)
    x = rng.standard_normal((count, cols)).astype(np.float32)
    for _ in range(large):
        x[rng.integers(count), rng.integers(cols)] *= 40.0
    if count > 3:
        x[2] = 0.0
    return x


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [1, 2, 7, 40])
@pytest.mark.parametrize(("threshold", "large"), [(6.0, 0), (6.0, 3), (1.0, 30), (0.0, 3)])
def test_products(isa: str, count: int, threshold: float, large: int) -> None:
    import torch

    from bitsmith.torch_modules.panels import to_panels

    module: Any = core()
    rows, cols, format = 50, 384, RowAbsmax()
    w = np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32)
    stored = QuantTensor(format, *format.reference(w))
    layout = grid_layout(format, cols)
    assert layout == "int8_128"
    x = inputs(count, cols, large)
    expected = InputRounding("llm.int8", "token", threshold=threshold).rounded(x) @ stored.values().T
    panels = to_panels(torch.from_numpy(grid_rows(stored, layout))).numpy()
    for precision in ("exact", "fine", "coarse"):
        out = np.empty((count, rows), np.float32)
        module.StoredProducts(2, isa).forward(layout, rows, cols, panels, x, precision, out, threshold)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=precision)
    plain = np.empty((count, rows), np.float32)
    module.StoredProducts(2, isa).forward(layout, rows, cols, panels, x, "exact", plain)
    assert threshold == 1.0 or not np.allclose(plain, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ["nf4", "fp4", "int4-g64-asym", "int8-g32"])
@pytest.mark.parametrize("count", [1, 9])
def test_other_grids(isa: str, layout: str, count: int) -> None:
    import torch

    from bitsmith.torch_modules.stored_weight import StoredWeight

    module: Any = core()
    torch.manual_seed(2)
    stored = StoredWeight.quantized(torch.randn(32, 256), get_format(layout), "w")
    x = inputs(count, 256, 4)
    expected = InputRounding("llm.int8", "token", threshold=6.0).rounded(x) @ stored.dense().numpy().T
    _, (panels,) = stored._matrix(0)
    assert stored.layout is not None
    for precision, worst in (("exact", 1e-5), ("coarse", 1e-2 if layout.startswith(("nf4", "fp4")) else 1e-5)):
        out = np.empty((count, 32), np.float32)
        products = module.StoredProducts(1, isa)
        products.forward(stored.layout.name, 32, 256, panels.numpy(), x, precision, out, 6.0)
        np.testing.assert_allclose(out, expected, rtol=0, atol=worst * np.abs(expected).max(), err_msg=precision)


def test_what_is_not_finite_is_not_hidden() -> None:
    import torch

    from bitsmith.torch_modules.stored_weight import StoredWeight

    module: Any = core()
    stored = StoredWeight.quantized(torch.randn(16, 128), get_format("int8-channel"), "w")
    _, (panels,) = stored._matrix(0)
    for count in (1, 3):
        for bad in (np.nan, np.inf):
            x = np.ones((count, 128), np.float32)
            x[0, 5] = bad
            out = np.zeros((count, 16), np.float32)
            module.StoredProducts(1).forward("int8_128", 16, 128, panels.numpy(), x, "coarse", out, 6.0)
            assert not np.isfinite(out[0]).any()
            assert np.isfinite(out[1:]).all()


@pytest.mark.parametrize("name", ["int8-channel", "q4_k", "q8_0", "nf4"])
@pytest.mark.parametrize("exact", [True, False])
def test_models(name: str, exact: bool) -> None:
    plain, ops = weights(name), TorchOps()
    rounding = InputRounding("llm.int8", "token", threshold=2.0)

    def read(tensor: str) -> Any:
        weight = plain(tensor)
        asked = len(weight.info.shape) > 1 and Overrides.concern(tensor)
        return replace(weight, input_rounding=rounding) if asked else weight

    reference = Decoder(CONFIG, load_weights(CONFIG, read, DenseKernel(), ops), ops)
    for tokens in (TOKENS, TOKENS[:1, :1]):
        logits = reference.numpy(reference.forward(tokens))
        made = load_core(CONFIG, read, threads=2, exact=exact, cache_type="f32")
        away = np.sqrt(np.mean(np.square(made.forward(tokens) - logits)))
        assert away < (0.01 if exact or name != "nf4" else 0.03) * spread(logits)  # a few codes fall the other way


def test_files_and_options(tmp_path: Path) -> None:
    tiny = make_folder(tmp_path / "tiny")
    made = bitsmith.quantize(tiny, to="bnb/int8", out=tmp_path / "made").out
    assert choose_kernel(open_checkpoint(made), None, default="int16") == "int16"
    tokens = np.random.default_rng(3).integers(2, 4096, (1, 40))
    for words in ({}, {"inputs": "llm.int8:1.5"}, {"inputs": "none"}):
        theirs = np.asarray(bitsmith.load(made, kernel="torch", **words).logits(tokens))
        for kernel, worst in (("exact", 0.01), ("int16", 0.01), ("int8", 0.05)):
            ours = np.asarray(bitsmith.load(made, kernel=kernel, **words).logits(tokens))
            assert np.sqrt(np.mean(np.square(ours - theirs))) < worst * spread(theirs), (words, kernel)
    with_f16 = np.asarray(bitsmith.load(tiny, kernel="exact", inputs="llm.int8").logits(tokens))
    theirs = np.asarray(bitsmith.load(tiny, kernel="torch", inputs="llm.int8").logits(tokens))
    assert np.sqrt(np.mean(np.square(with_f16 - theirs))) < 0.01 * spread(theirs)
    said = bitsmith.evaluate(made, against=tiny, context=32, max_windows=2, inputs="llm.int8")
    assert "KLD" in str(said)


def test_other_roundings_are_refused() -> None:
    plain = weights("int8-channel")

    def read(tensor: str) -> Any:
        return replace(plain(tensor), input_rounding=InputRounding("fp8", "token"))

    with pytest.raises(UnsupportedError, match="does not round inputs as it asks for"):
        load_core(CONFIG, read, threads=1, exact=True)
