"""llama-quantize's mixes as data (build 11434, src/llama-quant.cpp).

A mix has a base type and a table of exceptions. A row of the table has a type and a condition. The first row whose
condition holds decides the type; without such a row the tensor gets the base type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bitsmith.containers.floats import WRITTEN_FLOATS
from bitsmith.containers.gguf.types import TYPES
from bitsmith.errors import UsageError
from bitsmith.quant.formats import get_format
from bitsmith.recipe.category import Category
from bitsmith.recipe.rules import nearest_names
from bitsmith.recipe.shape import ModelShape


@dataclass(frozen=True)
class Place:
    """The position of a tensor among the tensors of its category.

    index, count: its number, from 0, and the number of these tensors; for ffn_down `count` is the number of layers
    importance: True if there is an importance matrix
    """

    index: int
    count: int
    shape: ModelShape
    importance: bool


@dataclass(frozen=True)
class When:
    """A condition on a place. `text` says it in words, after a name: "attn_v in the first eighth"."""

    text: str
    holds: Callable[[Place], bool]


def _more_bits(p: Place) -> bool:
    return p.index < p.count // 8 or p.index >= 7 * p.count // 8 or (p.index - p.count // 8) % 3 == 2


ALWAYS = When("", lambda p: True)
FIRST_TWO = When("of the first two layers", lambda p: p.index < 2)
FIRST_FOUR = When("of the first four layers", lambda p: p.index < 4)
SIXTEENTH = When("in the first sixteenth", lambda p: p.index < p.count // 16)
EIGHTH = When("in the first eighth", lambda p: p.index < p.count // 8)
MORE_BITS = When("in the first or last eighth, or every third layer", _more_bits)
SHARED = When("shared by four or more query heads", lambda p: p.shape.queries_per_key >= 4)
EIGHTH_ALONE = When("in the first eighth, without importance", lambda p: p.index < p.count // 8 and not p.importance)
EIGHTH_WEIGHTED = When("in the first eighth, with importance", lambda p: p.index < p.count // 8 and p.importance)

Rows = tuple[tuple[str, When], ...]


@dataclass(frozen=True)
class Mix:
    """One of llama-quantize's mixes.

    name: name on the command line
    file_type: GGUF's general.file_type (llama_ftype)
    base: the ggml type of tensors without an exception
    table: exceptions for each category; the first row that holds decides
    falcon: rows that replace those of `table` for the falcon architecture; other categories keep their rows
    heavier_with_8_experts: True if attn_output becomes q5_k in models with eight experts
    """

    name: str
    file_type: int
    base: str
    table: Mapping[Category, Rows] = field(default_factory=dict)
    falcon: Mapping[Category, Rows] = field(default_factory=dict)
    heavier_with_8_experts: bool = False

    @property
    def quantizes(self) -> bool:
        """False for f32, f16 and bf16, which have no exceptions."""
        return self.base not in WRITTEN_FLOATS

    def rows(self, category: Category, shape: ModelShape) -> Rows:
        """The exceptions for `category` in a model of this shape."""
        if shape.arch == "falcon" and category in self.falcon:
            return self.falcon[category]
        if shape.experts == 8 and shape.arch != "falcon" and category is Category.ATTN_OUTPUT:
            return (("q5_k", ALWAYS),) if self.heavier_with_8_experts else ()
        return self.table.get(category, ())


V, DOWN, OUT = Category.ATTN_V, Category.FFN_DOWN, Category.ATTN_OUTPUT
_IQ4: Mapping[Category, Rows] = {V: (("q5_k", SHARED),), DOWN: (("q5_k", EIGHTH_ALONE),)}

MIXES: dict[str, Mix] = {
    mix.name: mix
    for mix in [
        Mix("f32", 0, "f32"),
        Mix("f16", 1, "f16"),
        Mix("bf16", 32, "bf16"),
        Mix("q8_0", 7, "q8_0"),
        Mix("q4_0", 2, "q4_0", {DOWN: (("q4_1", EIGHTH_WEIGHTED),)}),
        Mix("q4_1", 3, "q4_1"),
        Mix("q5_0", 8, "q5_0", {DOWN: (("q5_1", EIGHTH_WEIGHTED),)}),
        Mix("q5_1", 9, "q5_1"),
        Mix(
            "q2_k",
            10,
            "q2_k",
            {
                V: (("q4_k", SHARED), ("q3_k", ALWAYS)),
                DOWN: (("q3_k", ALWAYS),),
                OUT: (("q3_k", ALWAYS),),
            },
            falcon={OUT: ()},
            heavier_with_8_experts=True,
        ),
        Mix("q2_k_s", 21, "q2_k", {V: (("q4_k", SHARED),), DOWN: (("q4_k", EIGHTH),)}),
        Mix("q3_k_s", 11, "q3_k", heavier_with_8_experts=True),
        Mix(
            "q3_k_m",
            12,
            "q3_k",
            {
                V: (("q5_k", FIRST_TWO), ("q4_k", ALWAYS)),
                DOWN: (("q5_k", SIXTEENTH), ("q4_k", ALWAYS)),
                OUT: (("q4_k", ALWAYS),),
            },
            falcon={DOWN: (("q5_k", SIXTEENTH), ("q4_k", MORE_BITS)), OUT: ()},
            heavier_with_8_experts=True,
        ),
        Mix(
            "q3_k_l",
            13,
            "q3_k",
            {V: (("q5_k", ALWAYS),), DOWN: (("q5_k", ALWAYS),), OUT: (("q5_k", ALWAYS),)},
            falcon={DOWN: (("q4_k", ALWAYS),), OUT: (("q4_k", ALWAYS),)},
        ),
        Mix(
            "q4_k_s",
            14,
            "q4_k",
            {V: (("q5_k", FIRST_FOUR),), DOWN: (("q5_k", EIGHTH),)},
            falcon={DOWN: ()},
            heavier_with_8_experts=True,
        ),
        Mix(
            "q4_k_m",
            15,
            "q4_k",
            {V: (("q6_k", MORE_BITS),), DOWN: (("q6_k", MORE_BITS),)},
            falcon={DOWN: (("q6_k", SIXTEENTH), ("q5_k", MORE_BITS))},
            heavier_with_8_experts=True,
        ),
        Mix("q5_k_s", 16, "q5_k"),
        Mix("q5_k_m", 17, "q5_k", {V: (("q6_k", MORE_BITS),), DOWN: (("q6_k", MORE_BITS),)}),
        Mix("q6_k", 18, "q6_k"),
        Mix("iq4_nl", 25, "iq4_nl", _IQ4, heavier_with_8_experts=True),
        Mix("iq4_xs", 30, "iq4_xs", _IQ4, heavier_with_8_experts=True),
    ]
}

ALIASES: dict[str, str] = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}


def find_mix(name: str) -> Mix:
    """The mix with this name or alias, in upper or lower case.

    Raises UsageError for an unknown name, with the nearest names and all names.
    """
    key = name.strip().lower()
    mix = MIXES.get(ALIASES.get(key, key))
    if mix is None:
        note = f"bitsmith reads {key} but does not write it; " if key in TYPES else _native_hint(key)
        raise UsageError(f"unknown GGUF mix {name!r}; {note}{nearest_names(key, {*MIXES, *ALIASES})}")
    return mix


def _native_hint(key: str) -> str:
    """A hint for names that only the native container has; else an empty string."""
    try:
        get_format(key)
    except UsageError:
        return ""
    return f"did you mean native/{key}? "
