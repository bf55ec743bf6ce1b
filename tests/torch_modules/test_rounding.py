"""Codes of torch's weights come from the C++ core, and equal those of the numpy definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bitsmith.errors import TensorError
from bitsmith.quant.formats import fourbit, get_format
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from bitsmith.system.core import core
from bitsmith.torch_modules import rounding
from bitsmith.torch_modules.stored_weight import StoredWeight

needs_core = pytest.mark.skipif(not hasattr(core(), "round_codebook"), reason="needs the C++ core of these sources")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def by_numpy(w: torch.Tensor, name: str, monkeypatch: pytest.MonkeyPatch) -> QuantTensor:
    format = get_format(name)
    with monkeypatch.context() as patch:
        patch.setattr(fourbit, "codebook_codes", lambda *args: None)
        return QuantTensor(format, *nearest(w.float().numpy(), format))


@needs_core
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["nf4", "fp4", "nf4-g128", "fp4-g256"])
def test_tables(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    w = (torch.randn(70, 512) * torch.logspace(-3, 2, 70)[:, None]).to(dtype)
    w[5] = 0
    expected = by_numpy(w, name, monkeypatch)
    monkeypatch.setattr(rounding, "_SLAB_WEIGHTS", 512 * 32)  # several slabs, the last of six rows
    monkeypatch.setattr(rounding, "nearest", None)
    found = StoredWeight.quantized(w, get_format(name), "w")
    parts = {"scale": found.state_dict()["scale"]}
    assert np.array_equal(parts["scale"].numpy(), expected.params["scale"])
    assert torch.equal(found.dense(torch.float32), torch.from_numpy(np.asarray(expected.values())))
    again = StoredWeight(get_format(name), (70, 512), dtype)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again.dense(), found.dense())


@needs_core
def test_models_that_are_loaded_with_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = fourbit.codebook_codes
    monkeypatch.setattr(fourbit, "codebook_codes", lambda *args: asked.append(args) or real(*args))
    w = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    nearest(w, get_format("nf4"))  # what `bitsmith.load(format=)` and --load-format round with
    assert asked


@pytest.mark.parametrize("name", ["nf4", "fp8", "int4-g64"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(name: str, bad: float) -> None:
    w = torch.ones(20, 128)
    w[19, 3] = bad
    with pytest.raises(TensorError, match=r"layer\.weight"):
        StoredWeight.quantized(w, get_format(name), "layer.weight")
