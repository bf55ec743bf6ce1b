"""Assignments for the folders that vLLM and transformers load: gptq, awq, compressed and bnb, for any architecture.

Linear layers are quantized. Embedding, output head, routers, norms and the tensors of `--keep` stay in 16 bits;
config.json lists them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitsmith.containers import find_container
from bitsmith.containers.bnb_codecs import FourBitCodec
from bitsmith.containers.container import GROUPS, ModuleContainer, Modules, Scheme
from bitsmith.containers.floats import WRITTEN_FLOATS
from bitsmith.containers.fused import fused_with, uneven
from bitsmith.containers.hf_files import StoredTensor, folder_files, module_names
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.manifest import Manifest, placeholder
from bitsmith.containers.module_lists import all_spellings, spellings
from bitsmith.containers.schemes import adjusted, parse
from bitsmith.errors import BitsmithError, UnsupportedError, UsageError, quoted
from bitsmith.models.checkpoint import Checkpoint, require_float, source_warnings
from bitsmith.quant.formats.base import SharesExtent
from bitsmith.recipe.folder import (
    KEPT,
    as_float,
    as_json,
    beside,
    guessed_linears,
    is_linear,
    model_config,
    own_float,
    transposed_layers,
    wanted_tensors,
)
from bitsmith.recipe.plan import Assignment, PlannedTensor
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.rules import Rule, unused_rules
from bitsmith.recipe.static_inputs import check_inputs
from bitsmith.recipe.target import Target

_EXPERT = re.compile(r"\.experts?\.|_exps\.")
_EXPERTS_STAY = "an expert: transformers keeps them in one parameter, which bitsandbytes does not quantize"
_MOST_STAYING = 0.05  # share of the weights that may stay in 16 bits without being asked for
_READ_GROUPS = (0, 32, 64, 128)  # group sizes that vLLM's kernels read; 0 is a whole row


@dataclass(frozen=True)
class SchemeChoice:
    """How a tensor is stored, and the reason: in a scheme, or (scheme None) in the type `float`."""

    tensor: PlannedTensor
    scheme: Scheme | None
    float: str
    reason: str

    @property
    def module(self) -> str:
        return self.tensor.info.name.removesuffix(".weight")

    @property
    def is_linear(self) -> bool:
        """Whether readers treat the tensor as a linear layer."""
        return is_linear(self.tensor.info)


def assign_hf(checkpoint: Checkpoint, target: Target, options: PlanOptions) -> Assignment:
    """The assignment of a folder that holds the linear layers of `checkpoint` in the layout of a `ModuleContainer`.

    Raises UsageError for an unknown name, rule or pattern, for options that contradict each other, and for static
    inputs without a calibration. Raises UnsupportedError for rows that no group divides, for a shape that the layout
    cannot hold, and for a quantized source.
    """
    container = find_container(target.container)
    assert isinstance(container, ModuleContainer)
    main = _main_scheme(target, options)
    require_float(checkpoint, requantize=options.requantize)
    if checkpoint.naming == "gguf" and isinstance(checkpoint.shape, BitsmithError):
        raise checkpoint.shape  # Hugging Face's names are not known
    transposed = transposed_layers(checkpoint)
    if transposed:
        raise UnsupportedError(f"{checkpoint.source.path}: {transposed}; write a native folder: --to=native/nf4.")
    rules, keep = _rules(container, options), _patterns(options.keep)
    wanted = wanted_tensors(checkpoint)
    _check_keep(keep, [tensor.info.name for tensor in wanted])
    choices = [_choose(t, target, main, rules, keep) for t in wanted]
    if container.linears_only:
        choices = _without_experts(checkpoint, choices)
    main, choices = _grouped(main, choices, checkpoint)
    own = _own_precision(checkpoint)
    version = container.version([choice.scheme for choice in choices if choice.scheme is not None])
    tensors = _sharing([_planned(choice, container, container.precision or own, version) for choice in choices])
    check_inputs(target, tensors, options.calibration)
    modules = _modules(main, choices, version)
    config = _configuration(checkpoint, container, modules, container.precision or own)
    further = {
        name: as_json(value) for name, value in container.further_files(config[container.config_keys[0]]).items()
    }
    stored = [StoredTensor(t.info, t.parts, module_names(t.info.name, t.parts)) for t in tensors]

    def layouts(manifest: Manifest) -> list[FileLayout]:
        return folder_files(stored, manifest, max_shard_bytes=options.max_shard_bytes)[0]

    _, index = folder_files(stored, placeholder("", "", ()), max_shard_bytes=options.max_shard_bytes)
    return Assignment(
        checkpoint=checkpoint,
        target=target,
        options=options,
        tensors=tensors,
        layouts=layouts,
        extras={**beside(checkpoint, config), **further, **index},
        warnings=(
            *unused_rules(rules, [t.info.name for t in tensors]),
            *_warnings(container, main, version, choices),
            *guessed_linears(checkpoint, tensors),
            *source_warnings(checkpoint),
        ),
    )


def _main_scheme(target: Target, options: PlanOptions) -> Scheme:
    if options.pure:
        raise UsageError(
            f"--pure is for gguf and native only. {target.container} quantizes linear layers; for other tensors use "
            "--rule."
        )
    group = options.group_size
    if group is not None and (group < -1 or group == 0):
        raise UsageError(f"--group-size={group}: expected -1 (a whole row) or a positive number.")
    asymmetric = None if options.symmetric is None else not options.symmetric
    scheme = parse(target.container, target.name)
    return adjusted(target.container, target.name, scheme, 0 if group == -1 else group, asymmetric)


def _rules(container: ModuleContainer, options: PlanOptions) -> list[Rule]:
    """The user's rules. A scheme's name may have suffixes, so it is parsed and not looked up."""
    found = []
    for text in options.rules:
        name = text.rpartition("=")[2].strip().lower()
        if not text.rpartition("=")[0] or not name:
            raise UsageError(f"rule {text!r}: expected REGEX=TYPE, for example 'down_proj=f16'.")
        if name not in WRITTEN_FLOATS and container.mixed:
            parse(container.name, name)
        held = {name, *container.schemes} if container.mixed else set()
        found.append(Rule.parse(text, {*WRITTEN_FLOATS, *held}))
    return found


def _patterns(keep: Sequence[str]) -> list[Rule]:
    for pattern in keep:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--keep={quoted(pattern)} is not a regular expression: {error}.") from error
    return [Rule(re.compile(pattern), "f16") for pattern in keep]


def _check_keep(keep: Sequence[Rule], names: Sequence[str]) -> None:
    """Raise UsageError for a pattern that matches no tensor."""
    for rule in keep:
        if not any(rule.matches(name) for name in names):
            raise UsageError(
                f"--keep={quoted(rule.pattern.pattern)} matches no tensor; --dry-run without it lists their names."
            )


def _without_experts(checkpoint: Checkpoint, choices: Sequence[SchemeChoice]) -> list[SchemeChoice]:
    """The choices with experts in 16 bits.

    Raises UnsupportedError if they hold most weights of the model and the user did not ask to keep them.
    """
    found = [
        replace(choice, scheme=None, float=_kept_float(choice.tensor), reason=_EXPERTS_STAY)
        if choice.scheme is not None and _EXPERT.search(choice.tensor.info.name)
        else choice
        for choice in choices
    ]
    stay = [each.tensor.info.parameters for each in found if each.reason == _EXPERTS_STAY or _kept_stack(each)]
    share = sum(stay) / max(sum(choice.tensor.info.parameters for choice in found), 1)
    if share > _MOST_STAYING:
        raise UnsupportedError(
            f"{checkpoint.source.path}: experts hold {share:.0%} of the weights, and would stay in 16 bits: "
            "transformers keeps them in one parameter, and bitsandbytes quantizes only linear layers. Write another "
            "container, for instance --to=native/nf4 or --to=q4_k_m, or accept it with --keep=experts."
        )
    return found


def _kept_stack(choice: SchemeChoice) -> bool:
    """Whether the tensor is a stack of experts that stays in 16 bits without being asked for."""
    info = choice.tensor.info
    return len(info.shape) > 2 and "expert" in info.name and not choice.reason.startswith(("keep ", "rule "))


def _kept_float(tensor: PlannedTensor) -> str:
    return tensor.source_layout if tensor.source_layout in ("f16", "bf16") else "f16"


def _choose(
    tensor: PlannedTensor, target: Target, main: Scheme, rules: Sequence[Rule], keep: Sequence[Rule]
) -> SchemeChoice:
    name, shape = tensor.info.name, tensor.info.shape
    kept = _kept_float(tensor)
    if len(shape) < 2:
        return SchemeChoice(tensor, None, own_float(tensor, "f32"), "a vector")
    for rule in (rule for rule in rules if rule.matches(name)):
        if rule.type in WRITTEN_FLOATS:
            return SchemeChoice(tensor, None, rule.type, f"rule '{rule}'")
        scheme = parse(target.container, rule.type)
        if scheme.group is None:
            scheme = replace(scheme, group=main.group)
        return SchemeChoice(tensor, scheme, "", f"rule '{rule}'")
    for rule in (rule for rule in keep if rule.matches(name)):
        return SchemeChoice(tensor, None, kept, f"keep '{rule.pattern.pattern}'")
    if tensor.outside:
        return SchemeChoice(tensor, None, kept, "not of the text decoder, or transposed")
    if KEPT.search(name):
        return SchemeChoice(tensor, None, kept, "embedding, head or router keeps its precision")
    if not name.endswith(".weight") or len(shape) > 2:
        return SchemeChoice(tensor, None, kept, f"{target.container} quantizes only linear layers")
    return SchemeChoice(tensor, main, "", target.name)


def _grouped(main: Scheme, choices: list[SchemeChoice], checkpoint: Checkpoint) -> tuple[Scheme, list[SchemeChoice]]:
    """The schemes with a group size. If the user gave none: the first of the scheme's that divides every row."""
    quantized = [choice for choice in choices if choice.scheme is not None]
    if not quantized:
        raise UnsupportedError(
            f"{checkpoint.source.path}: no linear layer is left to quantize; change --keep or --rule, or give a model "
            "with linear layers."
        )
    open_ = [choice for choice in quantized if choice.scheme is not None and choice.scheme.group is None]
    group = next((g for g in main.groups if all(choice.tensor.info.cols % g == 0 for choice in open_)), None)
    if group is None:
        least = min(main.groups)
        worst = next(choice.tensor.info for choice in open_ if choice.tensor.info.cols % least)
        rows = "give --group-size=-1 for one scale a row, or " if main.groups == GROUPS else ""
        raise UnsupportedError(
            f"{worst.name}: rows of {worst.cols} weights do not divide into groups of {least}; {rows}keep the tensor "
            f"in 16 bits with --keep='{re.escape(worst.name)}'."
        )

    def filled(scheme: Scheme) -> Scheme:
        return scheme if scheme.group is not None else replace(scheme, group=group)

    done = [c if c.scheme is None else replace(c, scheme=filled(c.scheme)) for c in choices]
    return filled(main), done


def _planned(choice: SchemeChoice, container: ModuleContainer, precision: str, version: int) -> PlannedTensor:
    tensor, info = choice.tensor, choice.tensor.info
    if choice.scheme is None:
        return as_float(tensor, choice.float, choice.reason)
    format, codec = container.stored(choice.scheme, precision, version)
    try:
        format.params_layout(info.rows, info.cols)  # do blocks divide the rows? Not every codec asks
        codec = codec.of_shape(info.shape) if isinstance(codec, FourBitCodec) else codec
        parts = codec.layout(info.shape)
    except UnsupportedError as error:
        raise UnsupportedError(f"{info.name}: {error.message}, with --keep='{re.escape(info.name)}'.") from error
    nbytes = sum(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in parts.values())
    info = replace(info, layout=codec.name, nbytes=nbytes)
    inputs = choice.scheme.input_rounding
    return replace(tensor, info=info, parts=parts, reason=choice.reason, format=format, codec=codec, inputs=inputs)


def _sharing(tensors: Sequence[PlannedTensor]) -> tuple[PlannedTensor, ...]:
    """The tensors, with the extents that those share which runtimes load as one matrix with one scale."""
    sharing = {
        tensor.info.name.removesuffix(".weight"): tensor
        for tensor in tensors
        if isinstance(tensor.format, SharesExtent) and tensor.format.shares_extent
    }
    found = []
    for tensor in tensors:
        module = tensor.info.name.removesuffix(".weight")
        names = [sharing[each].source for each in fused_with(module) if each in sharing] if module in sharing else []
        found.append(replace(tensor, together=tuple(name for name in names if name)) if names else tensor)
    return tuple(found)


def _own_precision(checkpoint: Checkpoint) -> str:
    """The more common 16-bit type of the source's matrices; "f16" if there is none."""
    matrices = [info.layout for info in checkpoint.source.tensors.values() if info.rows > 1]
    return "bf16" if matrices.count("bf16") > matrices.count("f16") else "f16"


def _modules(main: Scheme, choices: Sequence[SchemeChoice], version: int) -> Modules:
    """The schemes of the linear layers, for config.json."""
    kept = [choice.module for choice in choices if choice.scheme is None and choice.is_linear]
    quantized = {choice.module for choice in choices if choice.scheme is not None}
    if "lm_head" not in {*kept, *quantized}:  # a head that is tied to the embedding is still a module
        kept.append("lm_head")
    others = {
        name: choice.scheme
        for choice in choices
        if choice.scheme is not None and choice.scheme != main
        for name in spellings(choice.module)
    }
    of_main = all_spellings(choice.module for choice in choices if choice.scheme == main)
    return Modules(main, others, all_spellings(kept), version, of_main)


def _configuration(
    checkpoint: Checkpoint, container: ModuleContainer, modules: Modules, precision: str
) -> dict[str, Any]:
    """The contents of config.json."""
    config = model_config(checkpoint)
    config["dtype" if "dtype" in config else "torch_dtype"] = "bfloat16" if precision == "bf16" else "float16"
    said = container.configuration(modules)
    config |= dict.fromkeys(container.config_keys, said)
    return config


def _warnings(container: ModuleContainer, main: Scheme, version: int, choices: Sequence[SchemeChoice]) -> list[str]:
    found = []
    if "vllm" in container.runtimes and main.grouped and main.group not in _READ_GROUPS:
        found.append(f"groups of {main.group}: vLLM reads only groups of 32, 64, 128 and whole rows")
    found += container.warnings(main, version)
    experts = [c.tensor.info for c in choices if c.reason == _EXPERTS_STAY]
    if experts:
        found.append(f"{len(experts)} matrices of experts stay in 16 bits, the first is {experts[0].name}")
    stacks = [c.tensor.info.name for c in choices if c.scheme is None and len(c.tensor.info.shape) > 2]
    if stacks:
        found.append(f"{len(stacks)} stacks of matrices stay in 16 bits, the first is {stacks[0]}")
    schemes: Mapping[str, Scheme | None] = {c.module: c.scheme for c in choices if c.is_linear}
    mixed = uneven(schemes)
    if mixed and "vllm" in container.runtimes:
        found.append(f"vLLM loads {mixed[0]} as one matrix and refuses different types in it; give them the same type")
    return found
