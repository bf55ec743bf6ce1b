"""Names of modules that stay as they are: `keep` of `quantize_module`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from bitsmith.errors import UsageError


def kept_modules(keep: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """The modules that a pattern of `keep` names -> that pattern.

    A pattern is a module's name ("model.layers.0.mlp"), the end of one after a dot ("lm_head", "down_proj"), or has
    stars ("*.layers.0.*"). What lies in a module is kept with it. Raises UsageError for a pattern that names nothing.
    """
    if isinstance(keep, str):
        raise UsageError(f"keep={keep!r}: give a list of names: keep=[{keep!r}].")
    known = [name for name in names if name]
    found: dict[str, str] = {}
    for pattern in keep:
        hit = [name for name in known if _names(pattern, name)]
        if not hit:
            ends = sorted({name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].isdigit()})
            near = get_close_matches(pattern, [*ends, *known], n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"the modules are named {', '.join((ends or known)[:12])}."
            )
            raise UsageError(f"keep=[{pattern!r}] names no module; {hint}")
        for name in hit:
            found.setdefault(name, pattern)
    return found


def _names(pattern: str, name: str) -> bool:
    """Whether the pattern names this module or one that it lies in."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        outer = ".".join(parts[:end])
        if outer == pattern or outer.endswith(f".{pattern}") or fnmatchcase(outer, pattern):
            return True
    return False
