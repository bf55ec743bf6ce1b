"""How runtimes read the lists of modules that stay in 16 bits, and the names that they have for a module.

compressed-tensors (`match_named_modules`): an entry is a module's whole name, or "re:" and a pattern.
transformers (`should_convert_module`): an entry is the beginning of a name up to a dot, or its ending.
vLLM for AWQ (`is_layer_skipped`, with_substr): an entry is any part of a name.
ModelOpt (`exclude_modules`): an entry is a shell pattern ("*").
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from fnmatch import translate

# Beginnings of names in models that wrap a text decoder: in files, and as transformers since 4.52 calls the modules
_WRAPPED = (
    ("language_model.model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("vision_model.", "model.vision_model."),
    ("visual.", "model.visual."),
)
_HEAD, _WRAPPED_HEAD = "lm_head", "language_model.lm_head"


def spellings(module: str) -> tuple[str, ...]:
    """The names of one module in files and in runtimes, its own first.

    A file of a model for images says "language_model.model.layers.0...", and transformers calls the same module
    "model.language_model.layers.0...". A list with one name only is stale for readers that use the other.
    """
    found = [module]
    for one, other in _WRAPPED:
        if module.startswith(other):
            found.append(one + module.removeprefix(other))
        elif module.startswith(one):
            found.append(other + module.removeprefix(one))
    if module == _WRAPPED_HEAD:
        found.append(_HEAD)
    return tuple(found)


def all_spellings(modules: Iterable[str]) -> list[str]:
    """Every name of every module, once each."""
    return list(dict.fromkeys(name for module in modules for name in spellings(module)))


def whole_names(entries: Collection[str], names: Iterable[str]) -> set[str]:
    """The names that compressed-tensors' `ignore` names."""
    exact = {entry for entry in entries if not entry.startswith("re:")}
    patterns = [re.compile(entry[3:]) for entry in entries if entry.startswith("re:")]
    return {name for name in names if name in exact or any(pattern.match(name) for pattern in patterns)}


def any_part(entries: Collection[str], names: Iterable[str]) -> set[str]:
    """The names that hold an entry anywhere: what vLLM skips, and more than transformers skips."""
    return {name for name in names if any(entry in name for entry in entries)}


def beginnings_or_ends(entries: Collection[str], names: Iterable[str]) -> set[str]:
    """The names that transformers skips: they begin with an entry and a dot, are it, or end with it."""
    heads, ends = set(entries), tuple(entries)
    found = set()
    for name in names:
        parts = name.split(".")
        begins = any(".".join(parts[:count]) in heads for count in range(1, len(parts) + 1))
        if begins or name.endswith(ends):
            found.add(name)
    return found


def shell_patterns(entries: Collection[str], names: Iterable[str]) -> set[str]:
    """The names that ModelOpt's `exclude_modules` names."""
    plain = {entry for entry in entries if not set(entry) & set("*?[")}
    patterns = [re.compile(translate(entry)) for entry in entries if entry not in plain]
    return {name for name in names if name in plain or any(pattern.match(name) for pattern in patterns)}
