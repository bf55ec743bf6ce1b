"""llama.cpp: it reads the GGUF file itself; template and end tokens stand in it."""

from __future__ import annotations

from pathlib import Path

from bitsmith.handover.runtime import HALF, Prepared, Probing, Runtime, flag
from bitsmith.handover.subject import Subject


def _prepare(subject: Subject, folder: Path) -> Prepared:
    command = ("llama-server", "-m", str(subject.path), "-c", str(subject.context), *flag("jinja"))
    notes = (
        () if subject.tokenizer.has_chat_template else ("the file has no chat template: only /completion is of use",)
    )
    return Prepared((*command, *flag("alias", subject.name)), notes=notes)


PROBING = Probing("llamacpp_probe.py", "xllamacpp", lambda subject: HALF, program="llama-server")
RUNTIME = Runtime(
    "llama.cpp",
    "llama.cpp",
    frozenset({"gguf"}),
    "bitsmith quantize MODEL --to q4_k_m",
    _prepare,
    "build llama.cpp, or `pip install xllamacpp`, which has its server inside",
    probing=PROBING,
)
