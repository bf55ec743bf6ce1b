"""The check of a handover: the file against its manifest and its original, and the runtime against our own answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.handover.child import Told, ask, find_place
from bitsmith.handover.original import bits_of, check_same_model, most_lost
from bitsmith.handover.questions import (
    CHATS,
    NEW,
    TOP,
    WEATHER,
    Answers,
    loaded,
    log_probabilities,
    our_answers,
    rendered,
)
from bitsmith.handover.runtime import Runtime, Tolerance
from bitsmith.handover.subject import Subject, open_subject
from bitsmith.handover.verdict import Check, compare
from bitsmith.models.inspection import inspect
from bitsmith.system.progress import Report, silent

_ROOM = 64  # tokens beside what is asked


def check_file(subject: Subject, report: Report = silent) -> Check:
    """Every tensor against the hashes of the file's manifest."""
    found = inspect(subject.checkpoint.source, verify=True, report=report)
    recorded = sum(tensor.matches is not None for tensor in found.tensors)
    figures = {"tensors": len(found.tensors), "recorded": recorded}
    if found.problems:
        return Check("file", False, found.problems[0], figures)
    if not recorded:
        return Check("file", None, "the file has no manifest to compare its tensors with", figures)
    return Check("file", True, "", figures)


def check_configuration(subject: Subject) -> list[Check]:
    """An MLX folder names its quantization twice, for readers of either name: both must say the same."""
    if subject.container != "mlx":
        return []
    said = subject.checkpoint.hf_config
    same = "quantization" in said and said["quantization"] == said.get("quantization_config")
    reason = "" if same else "config.json: `quantization` and `quantization_config` must both be there and be the same"
    return [Check("configuration", same, reason)]


def check_original(subject: Subject, ours: Answers, original: str | Path) -> list[Check]:
    """The file against the model that it was made from: chat template, and mean KLD on the same tokens."""
    source = open_subject(original)
    checks = check_same_model(subject, source, ours.ends)
    if ours.chats:
        wrong = [
            chat["name"]
            for chat in CHATS
            if rendered(source.tokenizer, chat["messages"], chat.get("tools")) != ours.chats[chat["name"]]
        ]
        reason = f"the chat template writes another text than the original's for: {', '.join(wrong)}" if wrong else ""
        checks.append(Check("original: template", not wrong, reason))
    logs = log_probabilities(loaded(source), ours.ids, ours.first)
    if logs.shape != ours.logs.shape:
        reason = f"the original has {logs.shape[1]:,} tokens, the file {ours.logs.shape[1]:,}"
        return [*checks, Check("original: divergence", False, reason)]
    divergence = float((np.exp(logs.astype(np.float64)) * (logs - ours.logs)).sum(axis=1).mean())
    bits, most = bits_of(subject), most_lost(bits_of(subject))
    figures = {"mean_kld": round(divergence, 6), "tolerance": most, "bits": round(bits, 2)}
    far = not divergence <= most
    reason = f"the mean KLD from the original is {divergence:.3f} nats, more than {most}" if far else ""
    return [*checks, Check("original: divergence", not far, reason, figures)]


def check_runtime(
    runtime: Runtime,
    subject: Subject,
    ours: Answers,
    *,
    python: str | None = None,
    seconds: float = 900.0,
    path: Path | None = None,
    tolerance: Tolerance | None = None,
) -> tuple[Told, list[Check]]:
    """Start the runtime on the file and compare its answers.

    path: what the runtime opens; None: the file itself
    Raises UnsupportedError if the runtime is not installed.
    """
    probing = runtime.probing
    place = find_place(runtime, python)
    assert probing is not None
    request: dict[str, Any] = {
        "path": str((path or subject.path).resolve()),
        "threads": min(os.cpu_count() or 1, 8),
        "context": min(subject.context, 2048),
        "chats": [dict(chat) for chat in CHATS] if ours.chats else [],
        "ids": list(ours.ids),
        "first": ours.first,
        "top": TOP,
        "new": NEW,
        "tool_call": {"messages": CHATS[2]["messages"], "tools": [WEATHER]} if ours.calls_tools else None,
        "call": {"text": ours.call, "tools": [WEATHER]} if ours.call else None,
        **probing.request(subject),
    }
    told = ask(runtime, place, request, seconds=seconds)
    found = compare(ours, told, tolerance or probing.tolerance(subject))
    return told, [without_template(check, runtime) for check in found]


def without_template(check: Check, runtime: Runtime) -> Check:
    """The check, or that it says nothing: what the engine does with the file's template, the runtime may not do."""
    if not runtime.own_template or not check.name.startswith(("template", "tool call")):
        return check
    return Check(check.name, None, f"not checked: {runtime.own_template}")


def checked(
    runtime: Runtime,
    subject: Subject,
    *,
    python: str | None,
    original: str | Path | None,
    seconds: float,
    report: Report = silent,
    announce: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, str], list[Check]]:
    """Versions of the runtime, and all checks. Raises UnsupportedError if the runtime is not installed."""
    find_place(runtime, python)
    announce("reading the file")
    checks = [check_file(subject, report), *check_configuration(subject)]
    announce("computing our own answers")
    ours = our_answers(subject, loaded(subject))
    if original is not None:
        announce("comparing with the original")
        checks += check_original(subject, ours, original)
    announce(f"starting {runtime.started}")
    told, found = check_runtime(runtime, subject, ours, python=python, seconds=seconds)
    return dict(told.versions), [*checks, *found]
