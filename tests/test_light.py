"""What plans, inspects and quantizes starts without the heavy packages; they are imported where they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import bitsmith

HEAVY = ("torch", "transformers", "gguf", "huggingface_hub", "tokenizers", "jinja2", "matplotlib", "ml_dtypes")
MODULES = (
    *(
        "bitsmith.api",
        "bitsmith.pipeline.quantization",
        "bitsmith.models.inspection",
        "bitsmith.models.hub",
        "bitsmith.cli.main",
    ),
    *(
        "bitsmith.models.arch.hf_config",
        "bitsmith.models.arch.gguf_config",
        "bitsmith.runtime.generate",
        "bitsmith.runtime.conversation",
    ),
    *("bitsmith.runtime.load", "bitsmith.evaluation.speed"),
)
# beyond these, what running a GGUF file on the core has no use for; each costs a tenth of the start or more
UNUSED = (
    *("torch", "transformers", "gguf", "huggingface_hub", "jinja2", "rich", "pydantic", "prompt_toolkit", "ml_dtypes"),
    "bitsmith.quant.formats",
)


def test_no_heavy_imports() -> None:
    code = f"import sys, {', '.join(MODULES)}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_running_imports_what_it_uses(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    bitsmith.quantize(tiny, to="q8_0", out=file)
    code = (
        "import sys\n"
        "from bitsmith.system import core as cpp\n"
        "from bitsmith.cli import main\n"
        f"sys.argv = ['bitsmith', 'run', {str(file)!r}, '--raw', '--prompt', 'Once', '-n', '2']\n"
        "try:\n    main()\nexcept SystemExit as leaving:\n    if leaving.code:\n        raise\n"
        f"print('\\n', [name for name in {UNUSED} if name in sys.modules and cpp.core() is not None])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, input="")
    assert done.stdout.splitlines()[-1].strip() == "[]"
