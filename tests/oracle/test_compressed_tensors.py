"""compressed-tensors itself packs the same bytes, and transformers loads our folders with equal weights and logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitsmith
from bitsmith.containers.compressed import PackedCodec
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.formats.affine import Affine
from bitsmith.rounders.nearest import nearest
from bitsmith.tensor import QuantTensor

pytest.importorskip("compressed_tensors")
pytest.importorskip("transformers")

TOKENS = np.random.default_rng(0).integers(2, 4096, (2, 32))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_packed_bytes(bits: int, group: int, asymmetric: bool) -> None:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    format = Affine(bits, group, asymmetric, "f32")
    w = np.random.default_rng(bits).standard_normal((48, 96)).astype(np.float32)
    codes, params = nearest(w, format)
    tensor = QuantTensor(format, codes, params)
    ours = PackedCodec(format).encode(tensor)
    args = {"num_bits": bits, "symmetric": not asymmetric, "strategy": "group" if group else "channel"}
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(**args, **({"group_size": group} if group else {}))
    )
    half = 1 << (bits - 1)
    state = {"weight": torch.from_numpy(tensor.values()), "weight_scale": torch.from_numpy(params["scale"])}
    if asymmetric:
        state["weight_zero_point"] = torch.from_numpy((params["zero"].astype(np.int16) - half).astype(np.int8))
    theirs = PackedQuantizationCompressor.compress(state, scheme)
    assert theirs.keys() == ours.keys()
    for part, array in ours.items():
        assert np.array_equal(theirs[part].numpy(), array), part
    parts = {part: torch.from_numpy(array) for part, array in ours.items()}
    back = PackedQuantizationCompressor.decompress(parts, scheme)["weight"].numpy()
    assert np.allclose(back, tensor.values(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("to", ["w4a16", "w4a16-asym", "w8a16-channel", "w8a8", "fp8", "fp8-tensor"])
def test_the_configuration_is_what_the_package_writes(tiny: Path, tmp_path: Path, to: str) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    bitsmith.quantize(tiny, to=f"compressed/{to}", out=tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    read = QuantizationConfig.model_validate(said).to_dict()
    assert {key: read[key] for key in said} == said
    assert set(read) - set(said) <= {"moe_sparsity_config"}


@pytest.mark.parametrize(
    ("to", "words", "exact"),
    [
        ("w4a16", {}, True),
        ("w8a16", {"keep": [r"layers\.0\.mlp"], "rules": [r"layers\.1\.self_attn=w4a16-g32"]}, True),
        ("w8a8", {}, False),
        ("fp8", {}, False),
        ("fp8-tensor", {}, False),
    ],
)
def test_transformers_loads_our_folders(
    tiny: Path, tmp_path: Path, to: str, words: dict[str, Any], exact: bool
) -> None:
    """Weights are equal to the last bit; logits up to rounding where activations stay in floating point."""
    from transformers import AutoModelForCausalLM

    bitsmith.quantize(tiny, to=f"compressed/{to}", out=tmp_path / "out", **words)
    source = SafetensorsSource(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
    loaded = dict(model.named_parameters())
    for name, info in source.tensors.items():
        weight = loaded[name].detach().float().numpy().reshape(info.rows, info.cols)
        assert np.allclose(weight, source.rows(name), rtol=1e-6, atol=1e-9), name
    ours = bitsmith.load(tmp_path / "out").logits(TOKENS)
    assert np.abs(theirs - ours).max() < (1e-4 if exact else 0.2) * np.abs(ours).max()
