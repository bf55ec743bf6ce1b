"""Integers by groups, NF4, FP4, NVFP4 with a tensor's scale on the C++ core: packed, near the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.quant.formats import get_format
from bitsmith.quant.formats.byte_scaled import NVFP4_TENSOR
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor, TensorInfo
from bitsmith.runtime.core_grids import grid_layout, grid_rows
from bitsmith.runtime.core_loader import load_core
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import load_weights
from bitsmith.system.core import core
from tests.core.test_run import CONFIG, ISAS, TOKENS, spread
from tests.runtime.small import random_tensors

pytestmark = pytest.mark.skipif(core() is None, reason="no C++ core")

LAYOUTS = {
    "int4-g128": "int4_128",
    "int4-g64-asym": "int4_64",
    "int4-g32-f16": "int4_32",
    "int4-channel-asym": "int4_128",
    "int4-tensor": "int4_128",
    "int3-g128-asym": "int4_128",
    "int2-g64": "int4_64",
    "int8-g128": "int8_128",
    "int8-g32-asym": "int8_32",
    "int8-channel": "int8_128",
    "nf4": "nf4_64",
    "nf4-dq": "nf4_64",
    "fp4": "fp4_64",
    "fp4-g256": "fp4_128",
    "fp4-dq": "fp4_64",
    NVFP4_TENSOR.name: "nvfp4_64",
}
BITS = {"int4_32": 6, "int4_64": 5, "int4_128": 4.5, "int8_32": 10, "int8_128": 8.5, "nf4_64": 4.5} | {
    "fp4_64": 4.5,
    "fp4_128": 4.25,
    "nvfp4_64": 5,
}


def named(name: str) -> Any:
    """A format; also that of other tools' NVFP4, which users cannot ask for by a name of its own."""
    return NVFP4_TENSOR if name == NVFP4_TENSOR.name else get_format(name)


def weights(name: str) -> Any:
    """Reads random tensors whose matrices are in the format `name`."""
    read = {}
    for tensor, values in random_tensors(CONFIG).items():
        w = np.asarray(values if values.ndim == 1 else 0.2 * values, np.float32)
        info = TensorInfo(tensor, w.shape, "f32", w.nbytes)
        if w.ndim == 1:
            read[tensor] = Weight(info, lambda start, stop, w=w: w[None])
            continue
        format: Any = named(name)
        if hasattr(format, "with_extent"):
            format = format.with_extent(float(w.min()), float(w.max()))
        made = QuantTensor(format, *nearest(w, format, None))
        read[tensor] = Weight(
            TensorInfo(tensor, w.shape, f"bitsmith/{name}", 0),
            lambda start, stop, made=made: np.asarray(made.rows(slice(start, stop)).values()),
            codes=lambda start, stop, made=made: made.rows(slice(start, stop)),
        )
    return read.__getitem__


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_format_on_every_instruction_set(name: str, isa: str) -> None:
    read, ops = weights(name), TorchOps()
    reference = Decoder(CONFIG, load_weights(CONFIG, read, DenseKernel(), ops), ops)
    logits = reference.numpy(reference.forward(TOKENS))
    scale = spread(logits)
    exact = load_core(CONFIG, read, threads=2, exact=True, cache_type="f32", isa=isa)
    np.testing.assert_allclose(exact.forward(TOKENS), logits, atol=2e-4 * scale)
    int8 = load_core(CONFIG, read, threads=2, exact=False, cache_type="f32", isa=isa)
    assert np.sqrt(np.mean(np.square(int8.forward(TOKENS) - logits))) < 0.03 * scale
    # one row: inputs of 15 bits; the tables of NF4 and FP4 have 8
    few = int8.forward(TOKENS[:1, :1])
    assert np.abs(few - logits[:1, :1]).max() < (6e-2 if name.startswith(("nf4", "fp4")) else 2e-3) * scale
    np.testing.assert_allclose(exact.forward(TOKENS[:1, :1]), logits[:1, :1], atol=2e-4 * scale)


@pytest.mark.parametrize(("name", "layout"), LAYOUTS.items())
def test_matrices_stay_packed(name: str, layout: str) -> None:
    assert grid_layout(named(name), 256) == layout
    matrices = [s for n, s in ((n, v.shape) for n, v in random_tensors(CONFIG).items()) if len(s) > 1]
    count = sum(rows * cols for rows, cols in matrices) - CONFIG.vocab * CONFIG.hidden  # the embedding: one row
    decoder = load_core(CONFIG, weights(name), threads=1, exact=False)
    assert decoder.token_bytes == (count + CONFIG.hidden) * BITS[layout] / 8


def test_formats_without_a_layout_are_decoded() -> None:
    assert grid_layout(get_format("fp8"), 256) is None
    assert grid_layout(get_format("int4-channel"), 48) is None
    assert grid_layout(get_format("int4-g32"), 96) == "int4_32"
    assert grid_layout(NVFP4_TENSOR, 96) is None
    read = weights("fp8")
    decoder = load_core(CONFIG, read, threads=1, exact=True)
    assert decoder.token_bytes > 4 * CONFIG.vocab * CONFIG.hidden


def test_rows_hold_scale_offset_and_codes() -> None:
    format = get_format("int4-g32-asym")
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    scale = np.array([[0.5]], np.float32).astype(format.params_layout(1, 32)["scale"][1])
    row = grid_rows(QuantTensor(format, codes, {"scale": scale, "zero": np.array([[3]], np.uint8)}), "int4_32")
    assert row.shape == (1, 24)
    np.testing.assert_array_equal(row[0, :8].view(np.float32), [0.5, 0.5 * (8 - 3)])
    np.testing.assert_array_equal(row[0, 8:], codes[0, :16] | codes[0, 16:] << 4)


@pytest.mark.parametrize(
    "target",
    [
        *("native/int4", "native/nf4", "bnb/fp4", "bnb/nf4-dq", "gptq/int4", "awq/int4", "compressed/w4a16"),
        *("compressed/nvfp4", "modelopt/nvfp4a16", "mlx/nvfp4"),
    ],
)
def test_files_run_packed(target: str, tmp_path: Path) -> None:
    made = bitsmith.quantize("reference", to=target, out=tmp_path / "made", group_size=None)
    int8, reference = (bitsmith.load(made.out, kernel=kernel) for kernel in ("int8", "torch"))
    tokens = np.arange(1, 60)[None]
    theirs = reference.logits(tokens)
    assert np.sqrt(np.mean(np.square(int8.logits(tokens) - theirs))) < 0.03 * spread(theirs)
    assert int8.token_bytes < 1.2 * made.size


@pytest.mark.parametrize("name", ["q4_k", "q6_k", "q8_0", "q2_k", "nvfp4"])
def test_ggml_formats_in_other_folders_stay_packed(name: str, tmp_path: Path) -> None:
    made = bitsmith.quantize("reference", to=f"native/{name}", out=tmp_path / "made")
    int8, reference = (bitsmith.load(made.out, kernel=kernel) for kernel in ("int8", "torch"))
    tokens = np.arange(1, 60)[None]
    theirs = reference.logits(tokens)
    assert np.sqrt(np.mean(np.square(int8.logits(tokens) - theirs))) < 0.03 * spread(theirs)
    assert int8.token_bytes < made.size
