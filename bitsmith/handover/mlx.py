"""mlx-lm: it reads folders in MLX's layout, and those in 16 bits."""

from __future__ import annotations

from pathlib import Path

from bitsmith.handover.runtime import HALF, Prepared, Probing, Runtime, flag
from bitsmith.handover.subject import FLOATS, Subject


def _prepare(subject: Subject, folder: Path) -> Prepared:
    return Prepared(("mlx_lm.server", *flag("model", str(subject.path)), *flag("port", "8080")))


RUNTIME = Runtime(
    "mlx",
    "mlx-lm",
    frozenset({FLOATS, "mlx"}),
    "bitsmith quantize MODEL --to mlx/4bit",
    _prepare,
    "`pip install mlx-lm` (on Linux `pip install 'mlx[cpu]' mlx-lm`), and give that Python: "
    "--python=/path/to/bin/python",
    probing=Probing("mlx_probe.py", "mlx_lm", lambda subject: HALF),
)
