"""transformers: it reads Hugging Face folders by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bitsmith.handover.runtime import EXACT, HALF, Prepared, Probing, Runtime, Tolerance
from bitsmith.handover.subject import FLOATS, Subject

_PROGRAM = """\
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

path = str((Path(__file__).resolve().parent / {path!r}).resolve())  # seen from this file
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map="auto")
prompt = " ".join(sys.argv[1:]) or "Hello!"
if tokenizer.chat_template:
    messages = [{{"role": "user", "content": prompt}}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
else:
    inputs = tokenizer(prompt, return_tensors="pt")
inputs = inputs.to(model.device)
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""


def _prepare(subject: Subject, folder: Path) -> Prepared:
    needed = {"gptq": "gptqmodel", "awq": "gptqmodel", "compressed": "compressed-tensors", "bnb": "bitsandbytes"}
    package = needed.get(subject.container)
    notes = () if package is None else (f"transformers needs the package {package} for this folder",)
    seen = os.path.relpath(subject.path, os.path.realpath(folder))
    program = {"run.py": _PROGRAM.format(path=Path(seen).as_posix()).encode()}
    return Prepared(("python", str(folder / "run.py"), "Hello!"), files=program, notes=notes)


def _small_floats(subject: Subject) -> bool:
    """Whether the folder holds 4-bit floats, which compressed-tensors decodes to bfloat16 only."""
    layouts = {info.layout for info in subject.checkpoint.source.tensors.values()}
    return any(layout.startswith(("compressed/nvfp4", "compressed/mxfp4")) for layout in layouts)


def _tolerance(subject: Subject) -> Tolerance:
    """Weights and products are float32 where nothing rounds the inputs, and the container does not say otherwise."""
    return EXACT if subject.container in (FLOATS, "compressed") and not _small_floats(subject) else HALF


def _request(subject: Subject) -> dict[str, Any]:
    return {"dtype": "bfloat16" if _small_floats(subject) else "float32"}


RUNTIME = Runtime(
    "transformers",
    "transformers",
    frozenset({FLOATS, "gptq", "awq", "compressed", "bnb"}),
    "bitsmith quantize MODEL --to compressed/w4a16",
    _prepare,
    "`pip install transformers torch accelerate`, and give that Python: --python=/path/to/bin/python",
    probing=Probing("transformers_probe.py", "transformers", _tolerance, request=_request),
)
