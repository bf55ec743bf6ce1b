"""compressed-tensors itself packs the same bytes, and transformers loads our folders with equal weights and logits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitsmith
from bitsmith.calibration.config import CalibrationConfig
from bitsmith.calibration.run import prepare
from bitsmith.calibration.stats import Stats
from bitsmith.containers.compressed_codecs import PackedCodec
from bitsmith.containers.reservation import Reservation
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.pipeline.executor import execute
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from bitsmith.recipe.hf_containers import assign_hf
from bitsmith.recipe.plan import Plan
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.target import Target

pytest.importorskip("compressed_tensors")
pytest.importorskip("transformers")

TOKENS = np.random.default_rng(0).integers(2, 4096, (2, 32))
SHORT = np.random.default_rng(0).integers(2, 4096, (8, 6))


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


@pytest.mark.parametrize("type", ["int8", "fp8"])
@pytest.mark.parametrize("scope", ["token", "tensor", "static"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 3e4])
def test_inputs_are_rounded_to_the_same_bits(type: str, scope: str, size: float) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    x = torch.from_numpy(np.random.default_rng(7).standard_t(3, (3, 64, 256)).astype(np.float32) * size)
    x[0, 0] = 0
    x[1, 1] = torch.arange(256) - 127.5  # ties
    x[2, 2, 5] = 1e6
    args = QuantizationArgs(
        num_bits=8,
        type="int" if type == "int8" else "float",
        strategy="token" if scope == "token" else "tensor",
        dynamic=scope != "static",
    )
    if scope == "static":
        scale, zero = torch.tensor([0.75 * size]), torch.zeros(1)
        ours = InputRounding(type, "tensor", float(scale))
    else:
        scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Linear(1, 1))
        ours = InputRounding(type, scope)
    theirs = fake_quantize(x, scale, zero, args)
    assert torch.equal(ours.rounded(x), theirs)
    assert np.array_equal(ours.rounded(x.numpy()), theirs.numpy())


@pytest.mark.parametrize("to", ["w8a8-static", "fp8-static", "fp8-tensor-static"])
def test_stored_input_scales_are_what_the_package_makes(tiny: Path, tmp_path: Path, to: str) -> None:
    """Name, shape and dtype of every entry; the scale from the largest input; logits with rounded inputs."""
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        initialize_module_for_quantization,
    )
    from compressed_tensors.quantization.utils import calculate_qparams
    from safetensors.torch import load_file

    stats = static_folder(tiny, to, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(said)
    read = config.to_dict()
    assert {key: read[key] for key in said} == said
    module = torch.nn.Linear(128, 64, bias=False, dtype=torch.bfloat16)
    initialize_module_for_quantization(module, config.config_groups["group_0"], force_zero_point=False)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    prefix = "model.layers.1.mlp.down_proj."
    ours = {name.removeprefix(prefix): part for name, part in stored.items() if name.startswith(prefix)}
    theirs = dict(module.named_parameters())
    assert ours.keys() == theirs.keys()
    for part in ("input_scale", "weight_scale"):
        assert (ours[part].shape, ours[part].dtype) == (theirs[part].shape, theirs[part].dtype), part
    largest = torch.tensor(float(stats["blk.1.ffn_down"].max_abs.max()))
    args = QuantizationArgs(**said["config_groups"]["group_0"]["input_activations"])
    scale, _ = calculate_qparams(-largest, largest, args)
    assert torch.equal(ours["input_scale"], scale.to(torch.bfloat16))


def static_folder(model: Path, to: str, out: Path) -> Mapping[str, Stats]:
    """Written after a short calibration, whose statistics are returned."""
    prepared = prepare(open_checkpoint(model), CalibrationConfig(calibration_tokens=640, calibration_context=64))
    assignment = assign_hf(prepared.checkpoint, Target("compressed", to), PlanOptions(calibration=prepared.record))
    stats = prepared.run().stats
    absmax = {name: float(seen.max_abs.max()) for name, seen in stats.items()}
    plan = Plan.of(assignment, input_absmax=absmax)
    with Reservation([plan.destination(out)]) as reservation:
        execute(plan, out, reservation, threads=1)
    return stats


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
    """Weights are equal to the last bit; so are most logits, where a flipped rounding of an input is not carried on."""
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
    ours = bitsmith.load(tmp_path / "out", kernel="torch").logits(TOKENS)
    assert typical(theirs, ours) < 1e-5
    assert np.abs(theirs - ours).max() < (1e-4 if exact else 0.2) * np.abs(ours).max()


def test_transformers_reads_negative_scales(tiny: Path, tmp_path: Path) -> None:
    """Calibrated symmetric integers have them."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    calibration: dict[str, Any] = {"method": "gptq", "calibration_tokens": 640, "calibration_context": 64}
    bitsmith.quantize(tiny, to="compressed/w4a16", out=tmp_path / "out", **calibration)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    scales = [part for name, part in stored.items() if name.endswith(".weight_scale")]
    assert scales
    assert all(bool((part < 0).any()) and bool((part > 0).any()) for part in scales)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
    for kernel in ("torch", "exact"):
        ours = bitsmith.load(tmp_path / "out", kernel=kernel).logits(TOKENS)
        assert typical(theirs, ours) < 1e-5


@pytest.mark.parametrize("to", ["w8a8", "fp8", "fp8-tensor", "w8a8-static", "fp8-static", "fp8-tensor-static"])
def test_transformers_rounds_the_same_inputs(tiny: Path, tmp_path: Path, to: str, monkeypatch: Any) -> None:
    """Its modules run compressed-tensors' own forward pass; without rounding ours is far off."""
    from transformers import AutoModelForCausalLM

    if to.endswith("static"):
        static_folder(tiny, to, tmp_path / "out")
    else:
        bitsmith.quantize(tiny, to=f"compressed/{to}", out=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(SHORT)).logits.numpy()
    loaded = bitsmith.load(tmp_path / "out")
    assert typical(theirs, loaded.logits(SHORT)) < 1e-5
    monkeypatch.setattr(InputRounding, "rounded", lambda self, x: x)
    assert typical(theirs, loaded.logits(SHORT)) > 1e-3


def typical(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of a typical token's logits: one rounding that flips changes a token, and those after it."""
    return float(np.median(np.abs(a - b).max(axis=-1)))
