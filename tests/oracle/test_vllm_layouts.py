"""vLLM computes with our folders what our decoder does. It lives in an environment of its own: see bench/vllm_check.py.

Set BITSMITH_VLLM_PYTHON to that environment's interpreter to run this; it takes about a minute a file.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import bitsmith

PYTHON = os.environ.get("BITSMITH_VLLM_PYTHON", "")
PROGRAM = Path(__file__).parents[2] / "bench" / "vllm_check.py"


@pytest.mark.skipif(not PYTHON, reason="BITSMITH_VLLM_PYTHON names no interpreter with vLLM")
@pytest.mark.parametrize("to", ["gptq/int4", "awq/int4", "compressed/w4a16", "compressed/w8a8"])
def test_vllm_agrees(tmp_path: Path, to: str) -> None:
    made = bitsmith.quantize("reference", to=to, out=tmp_path / "model")
    words = [PYTHON, str(PROGRAM), str(made.out), "--windows", "1", "--json"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True, check=False)
    [found] = json.loads(done.stdout[done.stdout.index("[\n") :])
    assert found["failed"] == ""
    assert abs(found["kld"]) < 1e-3
