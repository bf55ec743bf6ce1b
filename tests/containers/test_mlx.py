"""MLX's layout: written, read back by every command, and equal to what mlx itself stores and decodes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.containers.container import Modules
from bitsmith.containers.mlx import CONTAINER
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import FileError, UnsupportedError, UsageError
from tests.cli.command import Command

MLX = os.environ.get("BITSMITH_MLX_PYTHON")
TOKENS = np.random.default_rng(0).integers(2, 4096, (1, 24))
DOWN = "model.layers.0.mlp.down_proj"
# The largest relative squared error of a matrix of random weights
WORST = {"2bit": 0.3, "3bit": 0.05, "4bit": 0.011, "5bit": 0.003, "6bit": 0.001, "8bit": 1e-4}
WORST |= {"mxfp4": 0.02, "nvfp4": 0.012, "mxfp8": 1e-3}


@pytest.mark.parametrize("name", CONTAINER.schemes)
def test_folders_are_written_read_and_run(tiny: Path, tmp_path: Path, name: str) -> None:
    made = bitsmith.quantize(tiny, to=f"mlx/{name}", out=tmp_path / "out")
    config = json.loads((made.out / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    assert set(config["quantization"]) == {"group_size", "bits", "mode"}
    source, original = SafetensorsSource(made.out), SafetensorsSource(tiny)
    for tensor, info in source.tensors.items():
        w, decoded = original.rows(tensor), source.rows(tensor)
        assert ((w - decoded) ** 2).sum() <= WORST[name] * (w**2).sum(), tensor
        assert info.layout.startswith("mlx/") == tensor.endswith("_proj.weight")
    assert not bitsmith.inspect(made.out, verify=True).problems
    ours = [bitsmith.load(made.out, kernel=kernel).logits(TOKENS) for kernel in ("exact", "torch")]
    np.testing.assert_allclose(ours[0], ours[1], atol=2e-4)
    back = SafetensorsSource(bitsmith.convert(made.out, to="f32", out=tmp_path / "back").out)
    np.testing.assert_array_equal(back.rows(f"{DOWN}.weight"), source.rows(f"{DOWN}.weight"))


def test_modules_that_differ_are_named(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(
        tiny, to="mlx/4bit-g32", rules=[r"layers\.0\.mlp\.down=8bit-g64", "embed_tokens=mxfp8"], out=tmp_path / "out"
    )
    said = json.loads((made.out / "config.json").read_text())["quantization"]
    assert said[DOWN] == {"group_size": 64, "bits": 8, "mode": "affine"}
    assert said["model.embed_tokens"] == {"group_size": 32, "bits": 8, "mode": "mxfp8"}
    layouts = {name: info.layout for name, info in SafetensorsSource(made.out).tensors.items()}
    assert layouts[f"{DOWN}.weight"] == "mlx/8bit-g64"
    assert layouts["model.embed_tokens.weight"] == "mlx/mxfp8"
    assert layouts["model.layers.1.mlp.down_proj.weight"] == "mlx/4bit-g32"


def test_experts_are_named_as_the_stack_that_mlx_lm_makes_of_them() -> None:
    plain, fine = (CONTAINER.schemes[name] for name in ("4bit", "8bit"))
    names = ["model.layers.0.mlp.experts.1.up_proj", "model.layers.0.block_sparse_moe.experts.0.w2"]
    said = CONTAINER.configuration(Modules(plain, dict.fromkeys(names, fine), (), 0))
    for name in (
        *names,
        "model.layers.0.mlp.switch_mlp.up_proj",
        "model.layers.0.block_sparse_moe.switch_mlp.down_proj",
    ):
        assert said[name]["bits"] == 8


def test_calibrated_codes_go_into_it(tiny: Path, tmp_path: Path) -> None:
    words = {"calibration": "default", "calibration_tokens": 512, "calibration_context": 64}
    for method in ("gptq", "learned", "awq"):
        made = bitsmith.quantize(tiny, to="mlx/3bit", method=method, out=tmp_path / method, **words)  # type: ignore[arg-type]
        assert not bitsmith.inspect(made.out, verify=True).problems


def test_what_is_refused(tiny: Path, tmp_path: Path, bitsmith_command: Command) -> None:
    with pytest.raises(UsageError, match="blocks of 64, 32, 128"):
        bitsmith.quantize(tiny, to="mlx/4bit", group_size=16, out=tmp_path / "x")
    made = bitsmith.quantize(tiny, to="mlx/4bit", out=tmp_path / "out").out
    config = json.loads((made / "config.json").read_text())
    for change, error in (
        ({"mode": "other"}, UnsupportedError),
        ({"bits": 7}, UnsupportedError),
        ({"group_size": 32}, FileError),
    ):
        changed = {**config, "quantization": {**config["quantization"], **change}}
        (made / "config.json").write_text(json.dumps(changed))
        with pytest.raises(error):
            SafetensorsSource(made)


_ASK = """
import sys, mlx.core as mx, numpy as np
weights, config = mx.load(sys.argv[1] + "/model.safetensors"), eval(sys.argv[2])
found = {}
for name in weights:
    if name.endswith(".scales"):
        module = name[:-7]
        biases = weights.get(module + ".biases")
        value = mx.dequantize(weights[module + ".weight"], weights[name], biases, **config)
        found[module + ".weight"] = np.array(value.astype(mx.float32))
np.savez(sys.argv[3], **found)
"""


@pytest.mark.skipif(not MLX, reason="BITSMITH_MLX_PYTHON is not set")
@pytest.mark.parametrize("name", CONTAINER.schemes)
def test_mlx_decodes_the_same_values(tiny: Path, tmp_path: Path, name: str) -> None:
    made = bitsmith.quantize(tiny, to=f"mlx/{name}", out=tmp_path / "out").out
    config = json.loads((made / "config.json").read_text())["quantization"]
    assert MLX is not None
    subprocess.run([MLX, "-c", _ASK, str(made), repr(config), str(tmp_path / "found.npz")], check=True)
    source = SafetensorsSource(made)
    for tensor, values in np.load(tmp_path / "found.npz").items():
        ours = source.rows(tensor)
        # mlx rounds decoded weights to the type of the scales, bfloat16 here
        np.testing.assert_allclose(values, ours, rtol=2**-7, atol=2**-8 * np.abs(ours).max(), err_msg=tensor)
