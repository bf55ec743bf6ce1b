"""Recipes decide the type of each tensor: llama-quantize's mixes, the user's rules, fallbacks for row lengths."""

from bitsmith.recipe.choose import Selection, TypeChoice, choose_types
from bitsmith.recipe.fallbacks import FALLBACKS, fit_to_row
from bitsmith.recipe.mixes import ALIASES, MIXES, Mix, find_mix
from bitsmith.recipe.rules import GGUF_RULE_TYPES, Rule, first_match
from bitsmith.recipe.shape import ModelShape

__all__ = [
    "ALIASES",
    "FALLBACKS",
    "GGUF_RULE_TYPES",
    "MIXES",
    "Mix",
    "ModelShape",
    "Rule",
    "Selection",
    "TypeChoice",
    "choose_types",
    "find_mix",
    "first_match",
    "fit_to_row",
]
