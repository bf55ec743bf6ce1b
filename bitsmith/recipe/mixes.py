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

    index, count: its number, from 0, and the number of these tensors; for tensors of the MLP `count` is the number of
        layers, and with experts `index` is the number of the layer
    order: its number, from 0, whatever the category
    stacked: whether it is a stack of matrices, one for each expert
    importance: True if there is an importance matrix
    """

    index: int
    count: int
    shape: ModelShape
    importance: bool
    order: int = 0
    stacked: bool = False


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

EIGHTH_BY_ORDER = When("in the first eighth", lambda p: p.order < p.count // 8)
MIDDLE = When("but in the first and last eighth", lambda p: p.count // 8 <= p.index < 7 * p.count // 8)
ALONE = When("without importance", lambda p: not p.importance)
SHARED_OR_EXPERTS = When(
    "shared by four or more query heads, or of a model with four or more experts",
    lambda p: p.shape.queries_per_key >= 4 or p.shape.experts >= 4,
)
EIGHT_EXPERTS = When("of a model with eight experts", lambda p: p.shape.experts == 8)
EIGHTH_OR_EXPERTS = When(
    "in the first eighth; with eight experts also in the last, and every third layer",
    lambda p: p.index < p.count // 8 or (p.shape.experts == 8 and _more_bits(p)),
)
STACKED = When("of all experts", lambda p: p.stacked)

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
    output: type of the output matrix, and of the embedding where both are one
    embedding: type of an embedding that is not the output matrix; "" for the base type
    lowest: True for mixes of one and two bits, whose table is all: no further rules for 70B and eight experts
    """

    name: str
    file_type: int
    base: str
    table: Mapping[Category, Rows] = field(default_factory=dict)
    falcon: Mapping[Category, Rows] = field(default_factory=dict)
    heavier_with_8_experts: bool = False
    output: str = "q6_k"
    embedding: str = ""
    lowest: bool = False

    @property
    def quantizes(self) -> bool:
        """False for f32, f16 and bf16, which have no exceptions."""
        return self.base not in WRITTEN_FLOATS

    def rows(self, category: Category, shape: ModelShape) -> Rows:
        """The exceptions for `category` in a model of this shape."""
        if self.lowest:
            return self.table.get(category, ())
        if shape.arch == "falcon" and category in self.falcon:
            return self.falcon[category]
        if shape.experts == 8 and shape.arch != "falcon" and category is Category.ATTN_OUTPUT:
            return (("q5_k", ALWAYS),) if self.heavier_with_8_experts else ()
        return self.table.get(category, ())


V, DOWN, OUT = Category.ATTN_V, Category.FFN_DOWN, Category.ATTN_OUTPUT
K, Q, UP, GATE = Category.ATTN_K, Category.ATTN_Q, Category.FFN_UP, Category.FFN_GATE
_IQ4: Mapping[Category, Rows] = {V: (("q5_k", SHARED),), DOWN: (("q5_k", EIGHTH_ALONE),)}


def _lowest(name: str, file_type: int, base: str, *, better: str, attention_output: Rows = ()) -> Mix:
    """A mix of one or two bits. better: the type of what matters more; attention_output: without eight experts"""
    table: Mapping[Category, Rows] = {
        V: (("q4_k", SHARED_OR_EXPERTS), (better, ALWAYS)),
        K: (("q4_k", EIGHT_EXPERTS),),
        DOWN: ((better, EIGHTH_BY_ORDER),),
        OUT: (("q5_k", EIGHT_EXPERTS), *attention_output),
    }
    return Mix(name, file_type, base, table, output="q5_k", embedding=better, lowest=True)


_IQ3_XXS: Mapping[Category, Rows] = {
    V: (("q4_k", SHARED), ("iq3_s", ALONE)),
    K: (("iq2_s", ALWAYS),),
    Q: (("iq2_s", ALWAYS),),
    DOWN: (("q4_k", EIGHTH_ALONE), ("q3_k", ALONE)),
    OUT: (("iq3_s", ALWAYS),),
}
_IQ3_XS: Mapping[Category, Rows] = {
    V: (("q4_k", SHARED),),
    K: (("iq3_xxs", ALWAYS),),
    Q: (("iq3_xxs", ALWAYS),),
    UP: (("iq3_xxs", MIDDLE),),
    GATE: (("iq3_xxs", MIDDLE),),
}
_IQ3_M: Mapping[Category, Rows] = {
    V: (("q4_k", ALWAYS),),
    DOWN: (("q4_k", EIGHTH_OR_EXPERTS),),
    OUT: (("q4_k", ALWAYS),),
}
_STACKS: Mapping[Category, Rows] = dict.fromkeys(
    (category for category in Category if category not in (Category.EMBEDDING, Category.OUTPUT)),
    (("mxfp4", STACKED), ("q8_0", ALWAYS)),
)

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
        _lowest("iq1_s", 24, "iq1_s", better="q2_k", attention_output=(("iq2_xxs", ALWAYS),)),
        _lowest("iq1_m", 31, "iq1_m", better="q2_k", attention_output=(("iq2_xxs", ALWAYS),)),
        _lowest("iq2_xxs", 19, "iq2_xxs", better="q2_k"),
        _lowest("iq2_xs", 20, "iq2_xs", better="q2_k"),
        _lowest("iq2_s", 28, "iq2_xs", better="iq3_s", attention_output=(("iq3_s", ALWAYS),)),
        _lowest("iq2_m", 29, "iq2_s", better="iq3_s", attention_output=(("iq3_s", ALWAYS),)),
        Mix(
            "iq3_xxs",
            23,
            "iq3_xxs",
            _IQ3_XXS,
            falcon={OUT: ()},
            heavier_with_8_experts=True,
            output="q5_k",
            embedding="iq3_s",
        ),
        Mix("iq3_xs", 22, "iq3_s", _IQ3_XS, heavier_with_8_experts=True),
        Mix("iq3_s", 26, "iq3_s", {V: (("q4_k", SHARED),)}, heavier_with_8_experts=True),
        Mix("iq3_m", 27, "iq3_s", _IQ3_M, falcon={OUT: ()}, heavier_with_8_experts=True),
        Mix("tq1_0", 36, "tq1_0", embedding="q4_k"),
        Mix("tq2_0", 37, "tq2_0", embedding="q4_k"),
        Mix("mxfp4_moe", 38, "mxfp4", _STACKS, output="q8_0", embedding="q8_0", lowest=True),
        Mix("nvfp4", 39, "nvfp4"),
        Mix("q1_0", 40, "q1_0"),
        Mix("q2_0", 41, "q2_0", embedding="q4_k"),
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
