"""The user's rules 'REGEX=TYPE'. REGEX is searched in the names of output tensors; the first match wins."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from bitsmith.containers.gguf.types import TYPES
from bitsmith.errors import UsageError

# ggml types that bitsmith writes; a rule for a GGUF file may name these
GGUF_RULE_TYPES: frozenset[str] = frozenset(name for name, type in TYPES.items() if type.written)


def nearest_names(name: str, known: Collection[str]) -> str:
    """The part of an error about an unknown name: the nearest names of `known`, and all of them."""
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}known: {', '.join(sorted(known))}."


@dataclass(frozen=True)
class Rule:
    """Tensors whose name matches `pattern` (re.search) get the type or format `type`."""

    pattern: re.Pattern[str]
    type: str

    def __str__(self) -> str:
        return f"{self.pattern.pattern}={self.type}"

    def matches(self, name: str) -> bool:
        """Whether the rule matches the output tensor with this name."""
        return self.pattern.search(name) is not None

    @classmethod
    def parse(cls, text: str, types: Collection[str] = GGUF_RULE_TYPES) -> Rule:
        """Read 'REGEX=TYPE'. The last '=' separates them, so REGEX may contain '='.

        types: allowed values of TYPE, lower case: the container's types or formats
        Raises UsageError if '=' is missing, REGEX is not valid, or TYPE is not one of `types`.
        """
        pattern, equals, name = text.rpartition("=")
        if not equals or not pattern:
            raise UsageError(f"rule {text!r}: expected REGEX=TYPE, for example 'ffn_down=q6_k'.")
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UsageError(
                f"rule {text!r}: {pattern!r} is not a regular expression: {error}. "
                "To match a character literally, put a backslash before it."
            ) from error
        wanted = name.strip().lower()
        if wanted not in types:
            raise UsageError(f"rule {text!r}: unknown type {name.strip()!r}; {nearest_names(wanted, types)}")
        return cls(compiled, wanted)


def unused_rules(rules: Sequence[Rule], names: Collection[str], kept: Collection[str] = ()) -> list[str]:
    """One warning for each rule that changes no tensor, with the reason.

    names: names of all output tensors
    kept: names of the tensors whose type no rule can change
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
            warnings.append(f"rule '{rule}' has no effect: earlier rules match all its tensors")
    return warnings


def first_match(rules: Sequence[Rule], name: str) -> Rule | None:
    """The first rule that matches the tensor with this name; None if no rule does."""
    return next((rule for rule in rules if rule.matches(name)), None)
