"""Ollama: a Modelfile with the file, the template in Ollama's own language, parameters and stop words."""

from __future__ import annotations

from pathlib import Path

from bitsmith.errors import UnsupportedError
from bitsmith.handover.go_template import as_go_template
from bitsmith.handover.llamacpp import PROBING
from bitsmith.handover.runtime import Prepared, Runtime
from bitsmith.handover.subject import Subject

_CONTEXT = 8192  # tokens; what Ollama reserves memory for, unless the user asks for more


def _prepare(subject: Subject, folder: Path) -> Prepared:
    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in subject.name.lower())
    modelfile = _modelfile(subject, folder)
    command = ("ollama", "create", name, "-f", str(folder / "Modelfile"))
    notes = (f"then `ollama run {name}`", "a check runs llama.cpp, the engine of Ollama, and not Ollama itself")
    return Prepared(command, files={"Modelfile": modelfile.encode()}, notes=notes)


def _modelfile(subject: Subject, folder: Path) -> str:
    """Raises UnsupportedError for a template that Ollama's language cannot say."""
    tokenizer = subject.tokenizer
    beside = subject.path.parent == folder.resolve()  # then both may be moved together
    lines = [f"FROM ./{subject.path.name}" if beside else f"FROM {subject.path}"]
    if tokenizer.has_chat_template:
        lines.append(f'TEMPLATE """{as_go_template(tokenizer)}"""')
    else:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    stops = [tokenizer.vocabulary.tokens[token] for token in sorted(tokenizer.end_ids)]
    for stop in stops:
        if '"' in stop or "\n" in stop:
            raise UnsupportedError(
                f"{subject.path}: a Modelfile cannot hold the end token {stop!r}; use --for=llama.cpp."
            )
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines.append(f"PARAMETER num_ctx {min(subject.context, _CONTEXT)}")
    return "\n".join(lines) + "\n"


def _refuses(subject: Subject) -> str:
    if len(subject.checkpoint.source.files) > 1:
        return "Ollama reads one GGUF file, and this is a split set; join it with `bitsmith convert`"
    return ""


RUNTIME = Runtime(
    "ollama",
    "Ollama",
    frozenset({"gguf"}),
    "bitsmith quantize MODEL --to q4_k_m",
    _prepare,
    "Ollama is at ollama.com; for a check, `pip install xllamacpp`",
    refuses=_refuses,
    probing=PROBING,
    engine="llama.cpp",
    own_template="Ollama uses the Modelfile's template, which was made from the file's own and compared with it",
)
