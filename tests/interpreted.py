"""Runs programs of tests under Triton's interpreter, in a process of their own: Triton reads its environment once."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def run(module: str, *words: str, interpret: bool = True, **environment: str) -> str:
    """What `python -m module words` prints; fails with its last lines if it fails."""
    own = os.environ | {"TRITON_INTERPRET": str(int(interpret)), "CUDA_VISIBLE_DEVICES": ""} | environment
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stderr or done.stdout)[-3000:]
    return done.stdout
