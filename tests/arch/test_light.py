"""Configurations, names and sampling need no torch."""

from __future__ import annotations

import subprocess
import sys


def test_no_heavy_imports() -> None:
    modules = (
        "bitsmith.arch, bitsmith.arch.hf_config, bitsmith.arch.gguf_config, bitsmith.arch.names, bitsmith.generate"
    )
    code = f"import sys, {modules}; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
