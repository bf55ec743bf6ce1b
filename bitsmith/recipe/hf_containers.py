"""Assignments for the folders that vLLM and transformers load: gptq, awq and compressed, any architecture.

Linear layers are quantized; the embedding, the output head, routers, norms and whatever `--keep` names stay in 16
bits, and are listed in the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitsmith.containers import find_container
from bitsmith.containers.container import GROUPS, ModuleContainer, Modules, Scheme
from bitsmith.containers.floats import WRITTEN_FLOATS
from bitsmith.containers.fused import uneven
from bitsmith.containers.hf_files import StoredTensor, folder_files, module_names
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.manifest import Manifest, placeholder
from bitsmith.containers.schemes import adjusted, parse
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.models.checkpoint import Checkpoint, quantized_already, require_float
from bitsmith.recipe.folder import KEPT, as_float, as_json, beside, model_config, own_float, wanted_tensors
from bitsmith.recipe.plan import Assignment, PlannedTensor
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.rules import Rule, unused_rules
from bitsmith.recipe.static_inputs import check_inputs
from bitsmith.recipe.target import Target

_NO_LINEAR = re.compile(r"embed|\bwte\b|\bwpe\b|conv|norm")
_READ_GROUPS = (0, 32, 64, 128)  # by vLLM's kernels


@dataclass(frozen=True)
class SchemeChoice:
    """What becomes of a tensor: a scheme, or None and a float type; and why."""

    tensor: PlannedTensor
    scheme: Scheme | None
    float: str
    reason: str

    @property
    def module(self) -> str:
        return self.tensor.info.name.removesuffix(".weight")

    @property
    def is_linear(self) -> bool:
        """Whether readers would take it for a linear layer."""
        name = self.tensor.info.name
        return len(self.tensor.info.shape) > 1 and name.endswith(".weight") and not _NO_LINEAR.search(name)


def assign_hf(checkpoint: Checkpoint, target: Target, options: PlanOptions) -> Assignment:
    """A folder that holds `checkpoint` with its linear layers in the layout of a `ModuleContainer`.

    Raises UsageError (unknown name, rule or pattern, options that contradict each other, ranges of inputs without a
    calibration), UnsupportedError (rows that no group divides, a shape that the layout cannot hold, a quantized
    source).
    """
    container = find_container(target.container)
    assert isinstance(container, ModuleContainer)
    main = _main_scheme(target, options)
    require_float(checkpoint, requantize=options.requantize)
    rules, keep = _rules(container, options), _patterns(options.keep)
    choices = [_choose(t, target, main, rules, keep) for t in wanted_tensors(checkpoint)]
    main, choices = _grouped(main, choices, checkpoint)
    own = _own_precision(checkpoint)
    version = container.version([choice.scheme for choice in choices if choice.scheme is not None])
    tensors = tuple(_planned(choice, container, container.precision or own, version) for choice in choices)
    check_inputs(target, tensors, options.calibration)
    modules = _modules(main, choices, version)
    config = _configuration(checkpoint, container, modules, container.precision or own)
    further = {name: as_json(value) for name, value in container.further_files(config["quantization_config"]).items()}
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
            *_unused_patterns(keep, [t.info.name for t in tensors]),
            *_warnings(container, main, version, choices),
            *quantized_already(checkpoint),
        ),
    )


def _main_scheme(target: Target, options: PlanOptions) -> Scheme:
    if options.pure:
        raise UsageError(
            f"--pure is for gguf and native; {target.container} takes linear layers, and others by --rule."
        )
    group = options.group_size
    if group is not None and (group < -1 or group == 0):
        raise UsageError(f"--group-size {group}: expected -1 (a whole row) or a positive number.")
    asymmetric = None if options.symmetric is None else not options.symmetric
    scheme = parse(target.container, target.name)
    return adjusted(target.container, target.name, scheme, 0 if group == -1 else group, asymmetric)


def _rules(container: ModuleContainer, options: PlanOptions) -> list[Rule]:
    """The user's rules; a scheme's name may carry suffixes, so that it is read rather than looked up."""
    found = []
    for text in options.rules:
        name = text.rpartition("=")[2].strip().lower()
        if not text.rpartition("=")[0] or not name:
            raise UsageError(f"rule {text!r}: expected REGEX=TYPE, for example 'down_proj=f16'")
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
            raise UsageError(f"--keep {pattern!r} is not a regular expression: {error}.") from error
    return [Rule(re.compile(pattern), "f16") for pattern in keep]


def _unused_patterns(keep: Sequence[Rule], names: Sequence[str]) -> list[str]:
    idle = [rule.pattern.pattern for rule in keep if not any(rule.matches(name) for name in names)]
    return [f"--keep {pattern!r} matches no tensor" for pattern in idle]


def _choose(
    tensor: PlannedTensor, target: Target, main: Scheme, rules: Sequence[Rule], keep: Sequence[Rule]
) -> SchemeChoice:
    name, shape = tensor.info.name, tensor.info.shape
    kept = tensor.source_layout if tensor.source_layout in ("f16", "bf16") else "f16"
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
        return SchemeChoice(tensor, None, kept, f"--keep {rule.pattern.pattern}")
    if KEPT.search(name):
        return SchemeChoice(tensor, None, kept, "embedding, head or router keeps its precision")
    if not name.endswith(".weight") or len(shape) > 2:
        return SchemeChoice(tensor, None, kept, f"no linear layer, which is all that {target.container} holds")
    return SchemeChoice(tensor, main, "", target.name)


def _grouped(main: Scheme, choices: list[SchemeChoice], checkpoint: Checkpoint) -> tuple[Scheme, list[SchemeChoice]]:
    """The same with a group size: the largest of 128, 64 and 32 that divides every row where nobody chose one."""
    quantized = [choice for choice in choices if choice.scheme is not None]
    if not quantized:
        raise UnsupportedError(f"{checkpoint.source.path}: no linear layer is left to be quantized.")
    open_ = [choice for choice in quantized if choice.scheme is not None and choice.scheme.group is None]
    group = next((g for g in GROUPS if all(choice.tensor.info.cols % g == 0 for choice in open_)), None)
    if group is None:
        worst = next(choice.tensor.info for choice in open_ if choice.tensor.info.cols % GROUPS[-1])
        raise UnsupportedError(
            f"{worst.name}: rows of {worst.cols} weights divide into no groups of {GROUPS[-1]}; give --group-size -1 "
            f"for a scale a row, or leave it in 16 bits with --keep '{re.escape(worst.name)}'."
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
        parts = codec.layout(info.shape)
    except UnsupportedError as error:
        raise UnsupportedError(f"{info.name}: {error}, with --keep '{re.escape(info.name)}'.") from error
    nbytes = sum(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in parts.values())
    info = replace(info, layout=codec.name, nbytes=nbytes)
    inputs = choice.scheme.input_rounding
    return replace(tensor, info=info, parts=parts, reason=choice.reason, format=format, codec=codec, inputs=inputs)


def _own_precision(checkpoint: Checkpoint) -> str:
    """The model's own 16-bit type: of its matrices, where they have one."""
    matrices = [info.layout for info in checkpoint.source.tensors.values() if info.rows > 1]
    return "bf16" if matrices.count("bf16") > matrices.count("f16") else "f16"


def _modules(main: Scheme, choices: Sequence[SchemeChoice], version: int) -> Modules:
    """What the configuration says of the linear layers."""
    kept = [choice.module for choice in choices if choice.scheme is None and choice.is_linear]
    quantized = {choice.module for choice in choices if choice.scheme is not None}
    if "lm_head" not in {*kept, *quantized}:  # tied to the embedding, and still a module
        kept.append("lm_head")
    others = {c.module: c.scheme for c in choices if c.scheme is not None and c.scheme != main}
    return Modules(main, others, kept, version)


def _configuration(
    checkpoint: Checkpoint, container: ModuleContainer, modules: Modules, precision: str
) -> dict[str, Any]:
    """config.json."""
    config = model_config(checkpoint)
    config["dtype" if "dtype" in config else "torch_dtype"] = "bfloat16" if precision == "bf16" else "float16"
    config["quantization_config"] = container.configuration(modules)
    return config


def _warnings(container: ModuleContainer, main: Scheme, version: int, choices: Sequence[SchemeChoice]) -> list[str]:
    found = []
    if main.grouped and main.group not in _READ_GROUPS:
        found.append(f"groups of {main.group}: vLLM reads groups of 32, 64, 128 and whole rows only")
    found += container.warnings(main, version)
    stacks = [c.tensor.info.name for c in choices if c.scheme is None and len(c.tensor.info.shape) > 2]
    if stacks:
        found.append(f"{len(stacks)} stacks of matrices stay in 16 bits, first {stacks[0]}")
    schemes: Mapping[str, Scheme | None] = {c.module: c.scheme for c in choices if c.is_linear}
    mixed = uneven(schemes)
    if mixed:
        found.append(f"vLLM loads {mixed[0]} as one matrix and refuses members that differ; give them all one type")
    return found
