"""Compares a runtime's answers with ours, each check with its figures and its reason."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitsmith.handover.child import Told
from bitsmith.handover.probes.child import ENDED
from bitsmith.handover.questions import CALL, WEATHER, Answers, Rendered
from bitsmith.handover.runtime import Tolerance

_AROUND = 30  # characters shown around the first difference of two texts


@dataclass(frozen=True)
class Check:
    """One thing that was compared.

    passed: None if there was nothing to compare
    reason: why it failed, or why there was nothing to compare
    figures: what was measured
    """

    name: str
    passed: bool | None
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> str:
        """The figures for people: " (mean 0.00012, worst 0.00180)"; "" if nothing was measured."""
        if "mean" not in self.figures:
            return ""
        return f" (mean {self.figures['mean']:.5f}, worst {self.figures['worst']:.5f} nats)"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "passed": self.passed, "reason": self.reason, **self.figures}


def compare(ours: Answers, told: Told, tolerance: Tolerance) -> list[Check]:
    """All checks of a runtime's answers."""
    if told.error or not told.done:
        return [Check("loading", False, told.error or "it did not answer everything")]
    return [
        Check("loading", True),
        *_templates(ours, told),
        _tokens(ours, told),
        _scores(ours, told, tolerance),
        _greedy(ours, told, tolerance),
        _tool_call(ours, told),
    ]


def _templates(ours: Answers, told: Told) -> Iterator[Check]:
    if not ours.chats:
        yield Check("template", None, "the model has no chat template")
    for name, mine in ours.chats.items():
        theirs = told.chats.get(name, {})
        yield Check(f"template: {name}", *_same_text(mine, theirs))


def _same_text(mine: Rendered, theirs: Mapping[str, Any]) -> tuple[bool, str]:
    refused = str(theirs.get("refused", ""))
    if mine.refused or refused:
        if mine.refused and refused:
            return True, "both refuse this conversation"
        who, why = ("the runtime", refused) if refused else ("the file's own template", mine.refused)
        return False, f"only {who} refuses it: {why}"
    text = str(theirs.get("text", ""))
    if text == mine.text:
        return True, ""
    shorter = min(len(text), len(mine.text))
    at = next((i for i in range(shorter) if text[i] != mine.text[i]), shorter)
    near = slice(max(0, at - _AROUND), at + _AROUND)
    return False, f"the texts differ at character {at}: expected {mine.text[near]!r}, found {text[near]!r}"


def _tokens(ours: Answers, told: Told) -> Check:
    """Whether both give the same tokens to the same texts."""
    for name, mine in ours.chats.items():
        theirs = told.chats.get(name, {})
        if theirs.get("text") == mine.text and mine.text:
            found = tuple(theirs.get("ids", ()))
            if found != mine.ids:
                shorter = min(len(found), len(mine.ids))
                at = next((i for i in range(shorter) if found[i] != mine.ids[i]), shorter)
                wanted = f"expected {mine.ids[at : at + 3]}, found {found[at : at + 3]}"
                return Check("tokens", False, f"{name}: from token {at} on they differ: {wanted}")
    compared = sum(len(each.ids) for each in ours.chats.values())
    return Check("tokens", True if compared else None, "" if compared else "no text to compare", {"tokens": compared})


def _scores(ours: Answers, told: Told, tolerance: Tolerance) -> Check:
    """Log probabilities of the runtime's likeliest tokens, against ours."""
    name, found = "log probabilities", []
    if len(told.top) != len(ours.logs):
        return Check(name, False, f"{len(told.top)} positions were answered, expected {len(ours.logs)}")
    swapped = 0
    for theirs, mine in zip(told.top, ours.logs, strict=True):
        ids = np.array([int(token) for token in theirs])
        values = np.array(list(theirs.values()))
        if not len(ids) or ids.min() < 0 or ids.max() >= len(mine) or not np.isfinite(values).all():
            return Check(name, False, "a position has no finite log probabilities of known tokens")
        found.append(float((np.exp(values) * np.abs(values - mine[ids])).sum()))
        best = ids[values.argmax()]
        swapped += bool(mine.max() - mine[best] > tolerance.tie)
    mean, worst = float(np.mean(found)), float(np.max(found))
    figures: dict[str, Any] = {
        "mean": round(mean, 6),
        "worst": round(worst, 6),
        "positions": len(found),
        "other_tokens_first": swapped,
    }
    figures["tolerance"] = tolerance.to_dict()
    reasons = []
    if not mean <= tolerance.mean:
        reasons.append(f"they differ by {mean:.4f} nats in the mean, more than {tolerance.mean}")
    if not worst <= tolerance.worst:
        reasons.append(f"they differ by {worst:.4f} nats at the worst position, more than {tolerance.worst}")
    if swapped:
        reasons.append(f"another token is the likeliest at {swapped} of {len(found)} positions")
    return Check(name, not reasons, "; ".join(reasons), figures)


def _greedy(ours: Answers, told: Told, tolerance: Tolerance) -> Check:
    """Greedy text: the same tokens. Where two are as likely as each other, the runtime went on from ours."""
    mine, even = ours.ids[ours.first :], 0
    for at, token in enumerate(mine):
        found = told.greedy[at] if at < len(told.greedy) else ENDED
        if found == token or (found == ENDED and token in ours.ends):  # some runtimes leave the end token out
            continue
        gap = _less_likely(ours, at, found)
        if gap > tolerance.tie:
            what = "it ends" if found == ENDED else f"it says token {found}, {gap:.3f} nats less likely"
            figures = {"tokens": len(mine), "same": at - even, "as_likely": even}
            return Check("greedy text", False, f"at token {at} {what}; expected {token}", figures)
        even += 1
    figures = {"tokens": len(mine), "same": len(mine) - even, "as_likely": even}
    if even == len(mine):
        return Check("greedy text", None, "not compared: all tokens are as likely as others", figures)
    return Check("greedy text", True, f"{even} tokens are as likely as those expected" if even else "", figures)


def _less_likely(ours: Answers, at: int, token: int) -> float:
    """Nats by which a token is less likely than the likeliest one; for ENDED, the likeliest end token."""
    row = ours.logs[at]
    tokens = [each for each in (ours.ends if token == ENDED else (token,)) if 0 <= each < len(row)]
    return min((float(row.max() - row[each]) for each in tokens), default=math.inf)


def _tool_call(ours: Answers, told: Told) -> Check:
    """A call of a tool that the model made in the runtime, where it has a server that finds calls."""
    if not ours.calls_tools:
        return Check("tool call", None, "the chat template does not tell the model of tools")
    if told.parsed_call is not None:
        return _parsed_call(told.parsed_call)
    if told.tool_call is None:
        return Check("tool call", None, "this runtime was not asked for a call; the templates with tools were compared")
    calls = told.tool_call.get("calls") or []
    if not calls:
        return Check("tool call", None, "the model made no call; the templates with tools were compared")
    name, text = calls[0].get("name"), calls[0].get("arguments")
    try:
        arguments = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return Check("tool call", False, f"its arguments are no JSON: {str(text)[:80]}")
    sound = isinstance(arguments, dict) and isinstance(arguments.get("city"), str)
    if name != WEATHER["function"]["name"] or not sound:
        return Check("tool call", False, f"expected get_weather with a city, found {name} with {str(arguments)[:80]}")
    return Check("tool call", True, "", {"call": {"name": name, "arguments": arguments}})


def _parsed_call(parsed: Mapping[str, Any]) -> Check:
    """The call that the runtime's parser finds in a text of one, as the file's chat template writes it."""
    if "absent" in parsed:
        return Check("tool call", None, f"{parsed['absent']}; the templates with tools were compared")
    wanted = CALL["function"]
    found = [_plain(call) for call in parsed.get("calls") or [] if isinstance(call, Mapping)]
    if found == [wanted]:
        return Check("tool call", True, "", {"call": wanted})
    said = str(parsed.get("failed") or found)[:200]
    return Check("tool call", False, f"in the text of a call of get_weather in Paris the runtime finds: {said}")


def _plain(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call by its name and its arguments as an object, where they are one."""
    arguments = call.get("arguments")
    with suppress(ValueError):
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"name": call.get("name"), "arguments": arguments}
