"""The user's own rules: 'REGEX=TYPE', searched in the output tensor's name, first match wins."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from bitsmith.containers.gguf.types import TYPES
from bitsmith.errors import UsageError

# ggml types that can be written, hence named by a rule for a GGUF file
GGUF_RULE_TYPES: frozenset[str] = frozenset(name for name, type in TYPES.items() if type.written)


def nearest_names(name: str, known: Collection[str]) -> str:
    """A sentence that names the closest of `known` and lists them all: for errors about unknown names."""
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}Known: {', '.join(sorted(known))}."


@dataclass(frozen=True)
class Rule:
    """Tensors whose name `pattern` finds (re.search) get the type or format `type`."""

    pattern: re.Pattern[str]
    type: str

    def __str__(self) -> str:
        return f"{self.pattern.pattern}={self.type}"

    def matches(self, name: str) -> bool:
        """Whether the rule speaks of the output tensor called `name`."""
        return self.pattern.search(name) is not None

    @classmethod
    def parse(cls, text: str, types: Collection[str] = GGUF_RULE_TYPES) -> Rule:
        """Read 'REGEX=TYPE'; the last '=' separates them, so the pattern may hold others.

        types: what TYPE may be, lower case: the container's types or formats
        Raises UsageError where '=' is missing, the regex is not valid, or TYPE is not one of `types`.
        """
        pattern, equals, name = text.rpartition("=")
        if not equals or not pattern:
            raise UsageError(f"rule {text!r}: expected REGEX=TYPE, for example 'ffn_down=q6_k'")
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UsageError(
                f"rule {text!r}: {pattern!r} is not a regular expression: {error}. "
                "To match a character literally put a backslash before it."
            ) from error
        wanted = name.strip().lower()
        if wanted not in types:
            raise UsageError(f"rule {text!r}: unknown type {name.strip()!r}; {nearest_names(wanted, types)}")
        return cls(compiled, wanted)


def unused_rules(rules: Sequence[Rule], names: Collection[str], kept: Collection[str] = ()) -> list[str]:
    """One warning for each rule that decided nothing, with the reason.

    names: of all output tensors; kept: those among them whose type no rule can change
    """
    warnings = []
    for i, rule in enumerate(rules):
        matched = [name for name in names if rule.matches(name)]
        open_to = [name for name in matched if name not in kept]
        if not matched:
            warnings.append(f"rule '{rule}' matches no tensor")
        elif not open_to:
            warnings.append(f"rule '{rule}' matches only tensors that are never quantized, such as {matched[0]}")
        elif all(first_match(rules[:i], name) is not None for name in open_to):
            warnings.append(f"rule '{rule}' never decides: earlier rules match all its tensors")
    return warnings


def first_match(rules: Sequence[Rule], name: str) -> Rule | None:
    """The first rule that speaks of the tensor called `name`."""
    return next((rule for rule in rules if rule.matches(name)), None)
