"""Answers questions about a model with another runtime; runs in that runtime's own Python.

Reads one JSON object from standard input, and writes one line of JSON for each answer, behind a mark, since runtimes
print on standard output too. argv[1] is a file with a class `Probe`; this file and that one import nothing of bitsmith.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from pathlib import Path
from typing import Any

MARK = "\x1ebitsmith "
ENDED = -1


def tell(event: str, **values: Any) -> None:
    """Write one answer."""
    sys.stdout.write(f"\n{MARK}{json.dumps({'event': event, **values})}\n")
    sys.stdout.flush()


def answer(request: dict[str, Any], probe: Any) -> None:
    """Ask the probe everything that the request wants."""
    tell("ready", versions=probe.versions())
    for chat in request["chats"]:
        try:
            tell("chat", name=chat["name"], **probe.chat(chat["messages"], chat.get("tools")))
        except Exception as error:  # a template may refuse; which of them do is compared
            tell("chat", name=chat["name"], refused=f"{type(error).__name__}: {error}"[:400])
    tell("scores", top=probe.scores(request["ids"], request["first"], request["top"]))
    tell("greedy", ids=choices(probe, request["ids"], request["first"]))
    if request.get("tool_call") and hasattr(probe, "tool_call"):
        tell("tool_call", **probe.tool_call(request["tool_call"]["messages"], request["tool_call"]["tools"]))
    if request.get("call") and hasattr(probe, "parse_call"):
        try:
            tell("parsed_call", **probe.parse_call(request["call"]["text"], request["call"]["tools"]))
        except Exception as error:  # it must find the call
            tell("parsed_call", failed=f"{type(error).__name__}: {error}"[:400])
    tell("done")


def choices(probe: Any, ids: list[int], first: int) -> list[int]:
    """The likeliest token behind each of ids[first - 1 :] but the last; ENDED where the text ended there.

    Where one is another than in `ids`, the text goes on with that of `ids`.
    """
    found: list[int] = []
    while first + len(found) < len(ids):
        wanted = ids[first + len(found) :]
        made = probe.greedy(ids[: first + len(found)], len(wanted))
        shorter = min(len(made), len(wanted))
        same = next((at for at in range(shorter) if made[at] != wanted[at]), shorter)
        found += made[: same + 1]
        if len(made) <= same < len(wanted):
            found.append(ENDED)
    return found


def main() -> int:
    """Load the probe and answer; 1 after an error, which is told."""
    request = json.loads(sys.stdin.buffer.read())
    try:
        spec = importlib.util.spec_from_file_location("bitsmith_probe", Path(sys.argv[1]))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        probe = module.Probe(request)
        try:
            answer(request, probe)
        finally:
            probe.close()
    except Exception as error:
        traceback.print_exc()
        tell("error", kind=type(error).__name__, text=str(error)[:2000])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
