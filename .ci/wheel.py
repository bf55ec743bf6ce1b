"""What a finished wheel must do on the machine it was built for; cibuildwheel runs it against the installed package."""

from __future__ import annotations

import tempfile
from pathlib import Path

import bitsmith
from bitsmith.system import core as cpp

core = cpp.core()
assert core is not None, cpp.missing()
with tempfile.TemporaryDirectory() as folder:
    made = bitsmith.quantize("reference", to="q4_0", out=Path(folder) / "reference.gguf")
    print(f"{core.isas()}: {made.size:,} bytes, {made.bits_per_weight:.3f} bits per weight")
