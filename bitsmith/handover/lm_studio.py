"""LM Studio: it finds models in folders OWNER/NAME/FILE.gguf."""

from __future__ import annotations

from pathlib import Path

from bitsmith.handover.llamacpp import PROBING
from bitsmith.handover.runtime import Prepared, Runtime
from bitsmith.handover.subject import Subject

_OWNER = "bitsmith"


def _prepare(subject: Subject, folder: Path) -> Prepared:
    files = subject.checkpoint.source.files
    links = {f"{_OWNER}/{subject.name}/{path.name}": path.resolve() for path in files}
    return Prepared(
        ("lms", "load", f"{_OWNER}/{subject.name}"),
        links=links,
        notes=(
            f"give {folder} to LM Studio as its folder of models (My Models, Change), or copy {folder / _OWNER} into "
            "~/.lmstudio/models",
            "a check runs llama.cpp, the engine of LM Studio, and not LM Studio itself",
        ),
    )


RUNTIME = Runtime(
    "lm-studio",
    "LM Studio",
    frozenset({"gguf"}),
    "bitsmith quantize MODEL --to q4_k_m",
    _prepare,
    "LM Studio is at lmstudio.ai; for a check, `pip install xllamacpp`",
    probing=PROBING,
    engine="llama.cpp",
)
