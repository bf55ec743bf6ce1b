"""Which tensors need importance: types of so few bits that plain squared error gives a model that is of no use."""

from __future__ import annotations

from collections.abc import Iterable

from bitsmith.recipe.category import Category, category_of
from bitsmith.recipe.plan import Assignment

# llama-quantize (build 11434, src/llama-quant.cpp, `tensor_requires_imatrix`) refuses to write these without it
NEEDY = frozenset({"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"})
_NEEDY_IN = {"q2_k_s": NEEDY | {"q2_k"}}  # by mix


def needing_importance(assignment: Assignment) -> tuple[str, ...]:
    """Names of the tensors of a GGUF file that are rounded to such types; embeddings and outputs never need it."""
    if assignment.target.container != "gguf":
        return ()
    types = ((tensor.info.name, tensor.info.layout) for tensor in assignment.tensors if tensor.format is not None)
    return needy_tensors(assignment.target.name, types)


def needy_tensors(mix: str, types: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Names of the tensors of a mix that need importance. types: names and types of tensors that are rounded"""
    needy, ends = _NEEDY_IN.get(mix, NEEDY), (Category.EMBEDDING, Category.OUTPUT)
    return tuple(name for name, type in types if type in needy and category_of(name) not in ends)
