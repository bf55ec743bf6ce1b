"""vLLM computes with our folders what our decoder does. It lives in an environment of its own: see bench/vllm_check.py.

Set BITSMITH_VLLM_PYTHON to that environment's interpreter to run this; it takes about a minute a file.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

import bitsmith

PYTHON = os.environ.get("BITSMITH_VLLM_PYTHON", "")
PROGRAM = Path(__file__).parents[2] / "bench" / "vllm_check.py"


NEEDS_VLLM = pytest.mark.skipif(not PYTHON, reason="BITSMITH_VLLM_PYTHON names no interpreter with vLLM")


@NEEDS_VLLM
@pytest.mark.parametrize("to", ["gptq/int4", "awq/int4", "compressed/w4a16", "compressed/w8a8"])
def test_vllm_agrees(tmp_path: Path, to: str) -> None:
    agrees(bitsmith.quantize("reference", to=to, out=tmp_path / "model").out)


@NEEDS_VLLM
@pytest.mark.parametrize(("to", "suffix"), [("gptq/int4", "scales"), ("compressed/w4a16", "weight_scale")])
def test_vllm_agrees_on_negative_scales(tmp_path: Path, to: str, suffix: str) -> None:
    """Calibrated symmetric integers have them."""
    made = bitsmith.quantize("reference", to=to, method="gptq", calibration_tokens=4096, out=tmp_path / "model")
    assert share_of_negative_scales(made.out, suffix) > 0.2
    agrees(made.out)


def share_of_negative_scales(folder: Path, suffix: str) -> float:
    """The smallest share of negative scales in a tensor whose name ends so."""
    tensors = load_file(folder / "model.safetensors")
    return min(float((part < 0).float().mean()) for name, part in tensors.items() if name.endswith(f".{suffix}"))


def agrees(folder: Path) -> None:
    """vLLM's log-probabilities of a window are ours."""
    words = [PYTHON, str(PROGRAM), str(folder), "--windows", "1", "--json"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True, check=False)
    [found] = json.loads(done.stdout[done.stdout.index("[\n  {") :])
    assert found["failed"] == ""
    assert abs(found["kld"]) < 1e-3
