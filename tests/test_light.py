"""What plans, inspects and quantizes starts without the heavy packages; they are imported where they are used."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "gguf", "huggingface_hub", "tokenizers", "jinja2", "matplotlib")
MODULES = (
    *("bitsmith.api", "bitsmith.quantization", "bitsmith.inspection", "bitsmith.hub", "bitsmith.cli.main"),
    *("bitsmith.arch.hf_config", "bitsmith.arch.gguf_config", "bitsmith.generate", "bitsmith.conversation"),
)


def test_no_heavy_imports() -> None:
    code = f"import sys, {', '.join(MODULES)}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
