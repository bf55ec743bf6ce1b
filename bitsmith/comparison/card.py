"""A README.md for a repository of the compared files, in the form of the Hugging Face hub (model cards).

Front matter: https://huggingface.co/docs/hub/model-cards. Results of tasks stand beside it in `.eval_results/`:
https://huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitsmith.comparison.table import shown
from bitsmith.comparison.verdict import quality_loss
from bitsmith.errors import printable
from bitsmith.system.sizes import human_bytes

if TYPE_CHECKING:
    from bitsmith.comparison.result import Comparison, Row

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LIBRARIES = {"gguf": "gguf"}  # container -> the hub's name of the library; others load with transformers
_RUN = {
    "gguf": (
        "llama.cpp: `llama-cli -m {file} -p 'Hello'`",
        "Ollama: `ollama run hf.co/OWNER/REPOSITORY{tag}`",
        "bitsmith: `bitsmith chat {file}`",
    ),
    "other": (
        "transformers: `AutoModelForCausalLM.from_pretrained({file!r}, device_map='auto')`",
        "vLLM: `vllm serve {file}`",
        "bitsmith: `bitsmith chat {file}`",
    ),
}


def card(found: Comparison, base: str) -> str:
    """The text of README.md.

    base: the original's name on the hub, "owner/name"; another name is written too, and must be replaced before upload
    """
    libraries = sorted({_LIBRARIES.get(row.container, "transformers") for row in found.rows})
    front = [
        "---",
        f"base_model: {json.dumps(base)}",
        "base_model_relation: quantized",
        *([f"library_name: {libraries[0]}"] if len(libraries) == 1 else []),
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in ("bitsmith", *sorted({row.container for row in found.rows}))),
        "---",
    ]
    how = found.conditions
    parts = [
        "\n".join(front),
        f"# {_cell(found.original.name)}, quantized",
        _cell(found.verdict),
        _table(found),
        "KLD is KL(original || file) in nats per token, its error over documents. Measured on "
        + "; ".join(
            f"{_cell(text.text)} ({text.tokens:,} tokens, sha256 {text.text_sha256[:16]})" for text in found.texts
        )
        + f", in windows of {how.context} tokens, with bitsmith {how.version}:",
        f"    {printable(how.command, keep='')}",
        "## How to run it",
        *(_run(row) for row in _one_a_container(found.rows)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(found: Comparison) -> str:
    tasks = [task.name for task in found.original.tasks]
    lines = [
        "| file | size | bits per weight | perplexity | mean KLD | top-1 |"
        + "".join(f" {_cell(each)} |" for each in tasks),
        "|---|---|---|---|---|---|" + "---|" * len(tasks),
    ]
    first = found.original
    own = [f"*{_cell(first.name)}*", human_bytes(first.file_bytes), f"{first.bits:.2f}"]
    own += [f"{first.summary.perplexity.value:.3f}", "", "", *(f"{100 * each.value:.1f} %" for each in first.tasks)]
    for cells in (own, *(_cells(row) for row in found.rows)):
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    lost = row.summary
    return [
        *(_cell(row.name), human_bytes(row.file_bytes), f"{row.bits:.2f}"),
        f"{lost.perplexity.value:.3f} ({quality_loss(row):+.2f} %)",
        *(shown(lost.kld), f"{100 * lost.top1.value:.2f} %"),
        *(f"{100 * task.value:.1f} %" for task in row.tasks),
    ]


def _cell(text: str) -> str:
    """A name inside of a Markdown table."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", printable(text, keep=""))


def _one_a_container(rows: tuple[Row, ...]) -> list[Row]:
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault("gguf" if row.container == "gguf" else "other", row)
    return list(found.values())


def _run(row: Row) -> str:
    lines = _RUN["gguf" if row.container == "gguf" else "other"]
    return "\n".join(f"- {line.format(file=row.path.name, tag=_tag(row.path.stem))}" for line in lines)


def _tag(stem: str) -> str:
    """Ollama's tag of a GGUF file, ":Q4_K_M"; empty if its name does not end in a format."""
    from bitsmith.recipe.mixes import ALIASES, MIXES

    name = stem.rpartition("-")[2]
    return f":{name}" if name.lower() in {*MIXES, *ALIASES} else ""


def eval_results(row: Row) -> str:
    """The tasks of one file as the hub's YAML; empty for tasks that are no data set of the hub."""
    lines = []
    for task in row.tasks:
        data_set = task.name.split(" ")[0]
        if task.lost is None:  # of lm-eval, which names data sets of the hub
            lines += [
                f"- dataset:\n    id: {json.dumps(data_set)}\n    task_id: {json.dumps(data_set)}",
                f"  value: {100 * task.value:.2f}\n  date: {datetime.date.today().isoformat()!r}",
                f"  notes: {json.dumps(f'{task.name}, {task.count} questions, lm-eval through bitsmith')}",
            ]
    return "\n".join(lines) + "\n" if lines else ""


def base_of(model: str, config: Mapping[str, Any]) -> str:
    """The original's name on the hub: as the user named it, or as its own files do; else the name of its folder."""
    if _HUB.fullmatch(model) and not model.startswith("."):
        return model
    named = config.get("_name_or_path")
    return named if isinstance(named, str) and _HUB.fullmatch(named) else model.rstrip("/").rpartition("/")[2]
