"""NVFP4 and MXFP4: compressed-tensors decodes the same values, and fused matrices share a scale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import bitsmith
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import TensorError
from bitsmith.quant.formats.byte_scaled import MXFP8, NVFP4_TENSOR

TOKENS = np.random.default_rng(0).integers(2, 4096, (1, 24))


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4"])
def test_compressed_tensors_decodes_the_same_values(tiny: Path, tmp_path: Path, name: str) -> None:
    base = pytest.importorskip("compressed_tensors.compressors.base")
    from compressed_tensors.quantization import QuantizationConfig

    made = bitsmith.quantize(tiny, to=f"compressed/{name}", out=tmp_path / "out").out
    config = json.loads((made / "config.json").read_text())["quantization_config"]
    assert config["format"] == f"{name}-pack-quantized"
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    compressor = base.BaseCompressor.get_value_from_registry(config["format"])
    entries, source = load_file(made / "model.safetensors"), SafetensorsSource(made)
    modules = [entry.removesuffix(".weight_packed") for entry in entries if entry.endswith(".weight_packed")]
    assert len(modules) == 14
    for module in modules:
        parts = ("weight_packed", "weight_scale", "weight_global_scale")
        state = {part: entries[f"{module}.{part}"] for part in parts if f"{module}.{part}" in entries}
        theirs = compressor.decompress(state, scheme)["weight"]
        ours = torch.tensor(source.rows(f"{module}.weight"))
        if theirs.dtype == torch.bfloat16 and name == "nvfp4":
            torch.testing.assert_close(theirs.float(), ours, rtol=2**-7, atol=0)
        else:
            assert torch.equal(theirs.float(), ours)


@pytest.mark.parametrize("method", [None, "gptq", "awq"])
def test_fused_matrices_share_their_scale(tiny: Path, tmp_path: Path, method: str | None) -> None:
    words = {} if method is None else {"calibration": "default", "calibration_tokens": 512, "calibration_context": 64}
    made = bitsmith.quantize(tiny, to="compressed/nvfp4", method=method, out=tmp_path / "out", **words).out  # type: ignore[arg-type]
    entries = load_file(made / "model.safetensors")
    for layer in range(2):
        for names in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            found = {float(entries[f"model.layers.{layer}.{name}.weight_global_scale"]) for name in names}
            assert len(found) == 1, (layer, names, found)
    assert not bitsmith.inspect(made, verify=True).problems
    ours = [bitsmith.load(made, kernel=kernel).logits(TOKENS) for kernel in ("exact", "torch")]
    np.testing.assert_allclose(ours[0], ours[1], atol=2e-4)


def test_mxfp4_runs_on_the_core_as_on_torch(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="compressed/mxfp4", out=tmp_path / "out").out
    ours = [bitsmith.load(made, kernel=kernel).logits(TOKENS) for kernel in ("exact", "torch")]
    np.testing.assert_allclose(ours[0], ours[1], atol=2e-4)


@pytest.mark.parametrize("format", [NVFP4_TENSOR, MXFP8])
def test_scales_are_the_best_near_absmax(format: bitsmith.quant.formats.byte_scaled.ByteScaled) -> None:  # type: ignore[name-defined]
    w = np.random.default_rng(1).standard_normal((8, 128)).astype(np.float32)
    w[0] = 0
    ready = format.with_extent(float(w.min()), float(w.max()))
    params = ready.fit(w)
    grid = ready.grid(params)
    values = grid.values(grid.nearest(w))
    assert np.isfinite(values).all()
    assert ((values - w) ** 2).sum() < 0.012 * (w**2).sum()
    assert (values[0] == 0).all()


def test_a_scale_without_a_value_is_refused(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="compressed/nvfp4", out=tmp_path / "out").out
    source = SafetensorsSource(made)
    name = "model.layers.0.mlp.up_proj.weight"
    packed = source.packed(name)
    broken = dict(packed.parts)
    broken["weight_scale"] = np.full_like(packed.parts["weight_scale"].view(np.uint8), 0x7F)
    stored = source.stored_as(name)
    assert stored is not None
    with pytest.raises(TensorError, match="negative or NaN"):
        stored.codec.decode(broken, 64)
