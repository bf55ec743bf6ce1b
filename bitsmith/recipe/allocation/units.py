"""Units: tensors that must have the same type, with every type that the container allows them, and its exact bytes.

What is allowed is asked of the container's own plan, one type after the other, so that a type, a fallback for row
lengths or a rule of a container is known in one place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bitsmith.containers import find_container
from bitsmith.containers.container import ModuleContainer
from bitsmith.containers.floats import NUMBERS, WRITTEN_FLOATS
from bitsmith.containers.fused import fused_with
from bitsmith.containers.schemes import parse
from bitsmith.errors import BitsmithError, UsageError
from bitsmith.models.arch.block import linear_shapes
from bitsmith.models.arch.names import in_stack
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.category import Category, category_of, why_kept
from bitsmith.recipe.gguf import assign_mix, gguf_keys, gguf_tensors
from bitsmith.recipe.needs import NEEDY
from bitsmith.recipe.plan import Assignment, PlannedTensor
from bitsmith.recipe.planners import assign
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.rules import GGUF_RULE_TYPES, Rule, first_match
from bitsmith.recipe.target import Target

# types for models that were trained in them; other weights lose more in them than in types of the same size
_TRAINED_IN = {"q1_0", "q2_0", "tq1_0", "tq2_0", "mxfp4", "nvfp4"}
# older types, and the one that makes them needless where rows fit it: without them the best choices lose as much
_OLDER = {"q4_0": "q4_k", "q4_1": "q4_k", "q5_0": "q5_k", "q5_1": "q5_k"}
_NATIVE = ("int8", "int4", "int4-asym", "int3", "int3-asym", "int2", "int2-asym", "nf4", "fp8")
_EXPERTS = re.compile(r"^blk\.(\d+)\.ffn_(gate|up|down|gate_up)_exps")
_ENDS = ("token_embd", "output")
BASE = ""  # as a choice's type: the base's own, which needs no rule

Weighted = Callable[[str], bool]
Assign = Callable[[tuple[str, ...]], Assignment]  # rules before the user's own -> the assignment


@dataclass(frozen=True)
class Choice:
    """One type of a unit. type: as in a rule, or `BASE`; tensors: the unit's tensors in it"""

    type: str
    tensors: tuple[PlannedTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of data of all its tensors."""
        return sum(tensor.info.nbytes for tensor in self.tensors)

    @property
    def label(self) -> str:
        """How its tensors are stored, such as "q4_k"."""
        return self.tensors[0].info.layout


@dataclass(frozen=True)
class Unit:
    """Tensors that have the same type.

    choices: at least two, the smallest first; one, where the type is given (`Allocatable.fixed`)
    """

    choices: tuple[Choice, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The output's names of its tensors."""
        return tuple(tensor.info.name for tensor in self.choices[0].tensors)


class Allocatable:
    """A model in a container, with types that are open. It gives units, and assignments for chosen types."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        target: Target,
        options: PlanOptions,
        *,
        for_speed: bool = False,
        weighted: Weighted | None = None,
    ) -> None:
        """Headers are read once.

        target: the types of tensors that are in no unit, and the name in the file
        for_speed: whether types are choices, too, for which only their speed speaks
        weighted: whether a matrix has importance, by GGUF name; None: all have it, if there is a calibration
        Raises what `assign` raises; UsageError for rules that divide modules which runtimes load as one matrix.
        """
        self.target = target
        self._assign = _assigner(checkpoint, target, options)
        self.base = self._assign(())
        self.checkpoint = self.base.checkpoint
        row = find_container(target.container)
        if isinstance(row, ModuleContainer) and row.fuses:
            _check_fused(self.base)
        found = _units(self.base, self._assign, self._types(), weighted or (lambda name: True))
        self.units = tuple(found if for_speed else filter(None, map(_without_older, found)))

    def assignment(self, rules: Sequence[str]) -> Assignment:
        """The assignment with rules that come after the user's own."""
        return self._assign(tuple(rules))

    def fixed_bytes(self) -> int:
        """Bytes of the tensors that have no choice."""
        return sum(tensor.info.nbytes for tensor in self._without_choice())

    @property
    def fixed(self) -> tuple[Unit, ...]:
        """Matrices that are rounded to a type that is given: by a rule of the user, or as the only one that fits.

        Each is a unit of one choice. Matrices that keep their values are in none.
        """
        rounded = (tensor for tensor in self._without_choice() if tensor.info.rows > 1 and _rounds(tensor))
        return tuple(Unit((Choice(BASE, (tensor,)),)) for tensor in rounded)

    def _without_choice(self) -> Iterator[PlannedTensor]:
        open_ = {name for unit in self.units for name in unit.names}
        return (tensor for tensor in self.base.tensors if tensor.info.name not in open_)

    def _types(self) -> tuple[str, ...]:
        """Types to try, as in rules."""
        floats = tuple(sorted({*WRITTEN_FLOATS} - {"f32"}))
        if self.target.container == "gguf":
            return tuple(sorted(GGUF_RULE_TYPES - {*WRITTEN_FLOATS} - _TRAINED_IN)) + floats
        if self.target.container == "native":
            return _NATIVE + floats
        row = find_container(self.target.container)
        assert isinstance(row, ModuleContainer)
        main = parse(self.target.container, self.target.name)
        schemes = tuple(
            name
            for name, scheme in row.schemes.items()
            if row.mixed and not scheme.inputs and not main.inputs and row.version([scheme]) == row.version([main])
        )
        return (*schemes, *floats)


def linear_of(tensor: PlannedTensor) -> str:
    """GGUF's name of a tensor without ".weight"; its own name if GGUF has none."""
    return tensor.linear or tensor.info.name.removesuffix(".weight")


def _assigner(checkpoint: Checkpoint, target: Target, options: PlanOptions) -> Assign:
    """The container's plan with further rules. Of a GGUF file, tensors and tokenizer are read once."""
    if target.container != "gguf":
        return lambda rules: assign(checkpoint, target, replace(options, rules=(*options.rules, *rules)))
    checkpoint = checkpoint.laid_out("gguf")
    first = assign(checkpoint, target, options)  # with all checks
    wanted, shape = gguf_tensors(checkpoint)
    keys = gguf_keys(checkpoint, options.pre)

    def of_rules(rules: tuple[str, ...]) -> Assignment:
        own = replace(options, rules=(*options.rules, *rules))
        return assign_mix(checkpoint, target, own, wanted, shape, keys) if rules else first

    return of_rules


def _check_fused(base: Assignment) -> None:
    """Raise UsageError if the user's rules divide modules that runtimes load as one matrix."""
    texts = [*(f"{each}=16 bits" for each in base.options.keep), *base.options.rules]
    rules = [Rule(re.compile(pattern), type.strip()) for pattern, _, type in (each.rpartition("=") for each in texts)]
    found = {each.info.name: first_match(rules, each.info.name) for each in base.tensors}
    given = {name: "open" if rule is None else rule.type for name, rule in found.items()}
    for name in given:
        names = [f"{module}.weight" for module in fused_with(name.removesuffix(".weight"))]
        types = {each: given[each] for each in names if each in given}
        if len(set(types.values())) > 1:
            said = ", ".join(f"{each}: {type}" for each, type in types.items())
            raise UsageError(
                f"rules divide modules that runtimes load as one matrix ({said}); name all of them in a rule, or none."
            )


def _units(base: Assignment, assigned: Assign, types: Sequence[str], weighted: Weighted) -> Iterator[Unit]:
    """The units of all matrices that a decoder multiplies with, and of its embedding."""
    config = base.checkpoint.config
    linears = {f"blk.{layer}.{name}" for layer in range(config.layers) for name in linear_shapes(config, layer)}
    linears |= {_stack(name) for name in linears} | set(_ENDS)
    gguf = base.target.container == "gguf"
    row = find_container(base.target.container)
    own_only = isinstance(row, ModuleContainer)
    fuses = isinstance(row, ModuleContainer) and row.fuses
    ends = () if fuses else _ENDS
    open_ = {
        tensor.info.name: linear_of(tensor)
        for tensor in base.tensors
        if linear_of(tensor) in linears
        and _may_change(tensor, config.arch)
        and (tensor.format or not own_only or linear_of(tensor) in ends)
    }
    found: dict[str, dict[str, PlannedTensor]] = {name: {} for name in open_}  # name -> type -> the tensor in it
    if own_only:
        for tensor in base.tensors:
            if tensor.info.name in open_:
                found[tensor.info.name][BASE] = tensor
    for type in types:
        for tensor in _planned(assigned, type, base.tensors):
            name = tensor.info.name
            other = gguf and (tensor.info.layout != type or _needs_more(tensor, base.options, weighted))
            if name in open_ and not other:
                found[name][type] = tensor
    groups: dict[str, list[str]] = {}
    for name, linear in open_.items():
        groups.setdefault(linear if gguf else _together(name, linear, fused=fuses), []).append(name)
    for names in groups.values():
        unit = _unit([found[name] for name in names])
        if unit is not None:
            yield unit


def _needs_more(tensor: PlannedTensor, options: PlanOptions, weighted: Weighted) -> bool:
    """Whether the type needs importance, and there is none."""
    ends = (Category.EMBEDDING, Category.OUTPUT)
    needy = tensor.info.layout in NEEDY and category_of(f"{linear_of(tensor)}.weight") not in ends
    return needy and (options.calibration is None or not weighted(f"{linear_of(tensor)}.weight"))


def _planned(assigned: Assign, type: str, tensors: Sequence[PlannedTensor]) -> Sequence[PlannedTensor]:
    try:
        return assigned((f".*={type}",)).tensors
    except BitsmithError:  # rows of some tensor do not divide: ask for each length of rows alone
        found: list[PlannedTensor] = []
        for cols in sorted({tensor.info.cols for tensor in tensors if tensor.info.rows > 1}):
            names = [tensor.info.name for tensor in tensors if tensor.info.cols == cols and tensor.info.rows > 1]
            rule = f"^(?:{'|'.join(map(re.escape, names))})$={type}"
            try:
                planned = assigned((rule,)).tensors
            except BitsmithError:
                continue
            found += [each for each in planned if each.info.name in set(names)]
        return found


def _unit(members: Sequence[Mapping[str, PlannedTensor]]) -> Unit | None:
    """The choices that all members have; None if there is only one."""
    shared = [type for type in members[0] if all(type in each for each in members[1:])]
    choices = [Choice(type, tuple(each[type] for each in members)) for type in shared]
    known = {(choice.label, choice.nbytes): choice for choice in choices}  # a named type before the base's own
    found = sorted(known.values(), key=lambda choice: (choice.nbytes, choice.label))
    found = [choice for choice in found if not _pointless(choice, found)]
    return Unit(tuple(found)) if len(found) > 1 else None


def _without_older(unit: Unit) -> Unit | None:
    """The unit without older types that another one replaces; None if one choice is left."""
    labels = {choice.label for choice in unit.choices}
    found = tuple(choice for choice in unit.choices if _OLDER.get(choice.label) not in labels)
    return Unit(found) if len(found) > 1 else None


def _pointless(choice: Choice, choices: Sequence[Choice]) -> bool:
    """Whether the source's own float type, of the same bytes, is there too."""
    source = choice.tensors[0].source_layout
    return (
        choice.label in NUMBERS
        and choice.label != source
        and any(each.label == source and each.nbytes == choice.nbytes for each in choices)
    )


def _may_change(tensor: PlannedTensor, arch: str) -> bool:
    """Whether the tensor is a matrix that llama-quantize, too, would round: no router, nothing that steers."""
    own = TensorInfo(f"{linear_of(tensor)}.weight", tensor.info.shape, tensor.info.layout, tensor.info.nbytes)
    return tensor.info.rows > 1 and not tensor.outside and why_kept(own, arch) is None


def _rounds(tensor: PlannedTensor) -> bool:
    """Whether the values of the tensor change."""
    exact = tensor.copied or tensor.constant is not None or tensor.info.layout in (tensor.source_layout, "f32")
    return not (exact or tensor.outside)


def _stack(name: str) -> str:
    """The stack of an expert's matrix; another name stays."""
    found = in_stack(f"{name}.weight")
    return name if found is None else found[0].removesuffix(".weight")


def _together(name: str, linear: str, *, fused: bool) -> str:
    """A key that tensors share which have one type: experts of a layer and kind.

    name: in the output; linear: GGUF's
    fused: all experts of the model have one type, and so have modules that runtimes load as one matrix
    """
    expert = _EXPERTS.match(linear)
    if expert is not None:  # transformers has one scheme for the experts of all layers
        return "experts" if fused else f"blk.{expert[1]}.{expert[2]}"
    return fused_with(name.removesuffix(".weight"))[0] if fused else linear
