"""Chooses the type of each tensor of a GGUF file, by llama-quantize's mixes (build 11434) and the user's rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from bitsmith.containers.floats import FLOATS
from bitsmith.containers.gguf.types import TYPES
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.category import Category, category_of, layer_of, why_kept
from bitsmith.recipe.fallbacks import divides, fit_to_row
from bitsmith.recipe.mixes import Mix, Place, find_mix
from bitsmith.recipe.rules import Rule, first_match, unused_rules
from bitsmith.recipe.shape import ModelShape

_EXACT = frozenset({"i8", "i16", "i32", "i64"})  # layouts that are always copied
_MLP = (Category.FFN_DOWN, Category.FFN_UP, Category.FFN_GATE)
_GLM5_SENSITIVE = ("attn_q_a", "attn_q_b", "nextn.eh_proj")


@dataclass(frozen=True)
class TypeChoice:
    """The type of one tensor, and the reason for it.

    type: a ggml type name
    reason: a short phrase for the plan
    kept: True if the tensor is never quantized
    fallback: True if the row length does not fit the type that the mix or a rule names
    """

    name: str
    type: str
    reason: str
    kept: bool = False
    fallback: bool = False


@dataclass(frozen=True)
class Selection:
    """The choices, in the order of the tensors, and warnings for the user."""

    mix: Mix
    choices: tuple[TypeChoice, ...]
    warnings: tuple[str, ...]

    def keeping(self, tensors: Sequence[TensorInfo]) -> Selection:
        """A copy in which tensors that are never quantized keep their layout in `tensors`.

        It is for GGUF sources: llama-quantize copies such tensors without change. Float vectors become f32 all the
        same: llama.cpp's products of norms and sums of biases take no other type, and it aborts.
        """
        found = {t.name: t for t in tensors}
        return replace(self, choices=tuple(_copied(c, found[c.name]) if c.kept else c for c in self.choices))

    def published(self, names: Collection[str], rules: Sequence[Rule]) -> Selection:
        """A copy in which these tensors are MXFP4, in which they are published, unless a rule names them."""

        def choice(each: TypeChoice) -> TypeChoice:
            if each.name not in names or first_match(rules, each.name) is not None:
                return each
            return replace(each, type="mxfp4", reason="mxfp4, as published", fallback=False)

        return replace(self, choices=tuple(choice(each) for each in self.choices))


def _copied(choice: TypeChoice, tensor: TensorInfo) -> TypeChoice:
    """The choice for a tensor that is never quantized and lies in a GGUF file."""
    if tensor.layout == choice.type or (tensor.layout in FLOATS and (tensor.rows == 1 or tensor.layout == "f64")):
        return choice
    return replace(choice, type=tensor.layout, reason=f"{choice.reason.removesuffix(', stays f32')}, copied")


def choose_types(
    mix: str,
    shape: ModelShape,
    tensors: Sequence[TensorInfo],
    *,
    importance: bool = False,
    pure: bool = False,
    rules: Sequence[Rule] = (),
) -> Selection:
    """The ggml type of every tensor of a GGUF file.

    mix: a name of `MIXES` or an alias, in upper or lower case
    tensors: all tensors of the output, with GGUF names, in any order
    importance: True if there is an importance matrix
    pure: use the mix's base type for all tensors, with output and embedding
    rules: the user's rules; the first that matches a tensor decides. The tensor still counts in its category, so a
        rule changes no other tensor (unlike llama-quantize's --tensor-type).

    Tensors that are never quantized become f32. Raises UsageError for an unknown mix.
    """
    found = find_mix(mix)
    names = [t.name for t in tensors]
    chooser = _Chooser(
        found, shape, importance=importance, pure=pure, tied="output.weight" not in names, rules=tuple(rules)
    )
    places = _places(tensors, shape, importance)
    choices = tuple(chooser.choose(t, places[t.name]) for t in tensors)
    kept = {c.name for c in choices if c.kept}
    return Selection(found, choices, (*_warnings(found, choices), *unused_rules(rules, names, kept)))


def _order(name: str) -> tuple[int, str]:
    return layer_of(name), name  # llama.cpp's order of a model's tensors


def _places(tensors: Sequence[TensorInfo], shape: ModelShape, importance: bool) -> dict[str, Place]:
    """The place of each tensor among the tensors of its category that can be quantized, in llama.cpp's order.

    With experts, some layers may have no MLP of some kind, so its tensors are counted by their layer.
    """
    totals = Counter(category_of(t.name) for t in tensors)
    seen: Counter[Category] = Counter()
    places = {}
    for tensor in sorted(tensors, key=lambda t: _order(t.name)):
        category = category_of(tensor.name)
        by_layer = category in _MLP
        index = layer_of(tensor.name) if by_layer and shape.experts > 1 else seen[category]
        count = shape.layers if by_layer else totals[category]
        stacked = len(tensor.shape) > 2 and tensor.shape[0] > 1
        places[tensor.name] = Place(index, count, shape, importance, seen[category], stacked)
        seen[category] += why_kept(tensor, shape.arch) is None
    return places


@dataclass(frozen=True)
class _Chooser:
    mix: Mix
    shape: ModelShape
    importance: bool
    pure: bool
    tied: bool
    rules: tuple[Rule, ...]

    def choose(self, tensor: TensorInfo, place: Place) -> TypeChoice:
        """The type of one tensor. It is a fallback if the row length does not fit."""
        why = why_kept(tensor, self.shape.arch)
        if tensor.layout in _EXACT:
            return TypeChoice(tensor.name, tensor.layout, f"{tensor.layout} is copied", kept=True)
        if why is not None:
            return TypeChoice(tensor.name, "f32", f"{why}, stays f32", kept=True)
        rule = first_match(self.rules, tensor.name)
        if rule is not None:
            wanted, reason = rule.type, f"rule '{rule}'"
        elif self.pure or not self.mix.quantizes:
            wanted, reason = self.mix.base, f"pure {self.mix.base}" if self.pure else self.mix.name
        else:
            wanted, reason = self._from_mix(tensor, place)
        final = fit_to_row(wanted, tensor.cols)
        if final != wanted:
            block = TYPES[wanted].block
            reason = f"fallback: row of {tensor.cols} does not divide by {block} ({reason}: {wanted})"
        return TypeChoice(tensor.name, final, reason, fallback=final != wanted)

    def _from_mix(self, tensor: TensorInfo, place: Place) -> tuple[str, str]:
        """The mix's type for a tensor and the reason, without a fallback for the row length."""
        mix, shape, category = self.mix, self.shape, category_of(tensor.name)
        if shape.arch == "glm5-next" and any(part in tensor.name for part in _GLM5_SENSITIVE):
            return "q8_0", "glm5-next: at least q8_0"
        if category is Category.OUTPUT or (self.tied and category is Category.EMBEDDING):
            return self._for_output(tensor)
        if category is Category.EMBEDDING and mix.embedding:
            return mix.embedding, f"{mix.name}: {category.value}"
        chosen, reason = mix.base, mix.name
        for type_name, when in mix.rows(category, shape):
            if when.holds(place):
                chosen, reason = type_name, f"{mix.name}: {category.value} {when.text}".rstrip()
                break
        if mix.lowest:
            return chosen, reason
        if category is Category.ATTN_V and shape.is_70b and chosen in ("q3_k", "q4_k"):
            chosen, reason = "q5_k", f"{mix.name}: attn_v of a 70B"
        if category in (Category.ATTN_V, Category.ATTN_K) and shape.experts == 8:
            chosen, reason = "q8_0", f"{mix.name}: {category.value} of a model with eight experts"
        return chosen, reason

    def _for_output(self, tensor: TensorInfo) -> tuple[str, str]:
        what = "output" if category_of(tensor.name) is Category.OUTPUT else "tied token_embd"
        if not divides(self.mix.base, tensor.cols):
            return "q8_0", f"{what}: row of {tensor.cols} does not divide by {TYPES[self.mix.base].block}"
        if self.shape.arch == "falcon" or self.mix.base == "q8_0":
            return "q8_0", f"{self.mix.name}: {what}"
        return self.mix.output, f"{self.mix.name}: {what}"


def _warnings(mix: Mix, choices: Sequence[TypeChoice]) -> list[str]:
    warnings = []
    fallen = sum(c.fallback for c in choices)
    if fallen:
        warnings.append(
            f"{fallen} of {len(choices)} tensors take a fallback type: their rows do not divide by the block of the "
            f"type that {mix.name} gives them"
        )
    return warnings
