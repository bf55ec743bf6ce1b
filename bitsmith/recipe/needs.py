"""Which tensors need importance: types of so few bits that plain squared error gives a model that is of no use."""

from __future__ import annotations

from bitsmith.recipe.category import Category, category_of
from bitsmith.recipe.plan import Assignment

# llama-quantize (build 11434, src/llama-quant.cpp, `tensor_requires_imatrix`) refuses to write these without it
NEEDY = frozenset({"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"})
_NEEDY_IN = {"q2_k_s": NEEDY | {"q2_k"}}  # by mix


def needing_importance(assignment: Assignment) -> tuple[str, ...]:
    """Names of the tensors of a GGUF file that are rounded to such types; embeddings and outputs never need it."""
    if assignment.target.container != "gguf":
        return ()
    needy = _NEEDY_IN.get(assignment.target.name, NEEDY)
    ends = (Category.EMBEDDING, Category.OUTPUT)
    return tuple(
        tensor.info.name
        for tensor in assignment.tensors
        if tensor.format is not None and tensor.info.layout in needy and category_of(tensor.info.name) not in ends
    )
