"""Bytes of a model's tensors in a format, by the rules that `quantize` follows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bitsmith.containers import codec_for, find_container
from bitsmith.containers.base import Codec
from bitsmith.containers.container import ModuleContainer
from bitsmith.containers.floats import NUMBERS, WRITTEN_FLOATS
from bitsmith.containers.gguf.types import TYPES
from bitsmith.containers.schemes import parse
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.planner.network import Network
from bitsmith.quant.formats import get_format, resolve
from bitsmith.quant.formats.base import Format
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.category import layer_of
from bitsmith.recipe.choose import Selection, TypeChoice, choose_types
from bitsmith.recipe.mixes import ALIASES, MIXES, find_mix
from bitsmith.recipe.needs import needy_tensors
from bitsmith.recipe.shape import ModelShape
from bitsmith.recipe.target import Target

_KEPT = re.compile(
    r"^(token_embd|output|position_embd|vision)\b|gate_inp|conv|norm|sinks|ssm_(ba|beta|alpha)\b"
)  # floats outside GGUF
_FALLEN = 0.05  # share of the weights that may have another type, for a measured loss to hold
_ALIASES = {"fp16": "f16", "fp32": "f32"}


@dataclass(frozen=True)
class Stored:
    """A model in a format.

    target: name as for `--to`; "as it is" for a file with the types it has now
    tensors: bytes of each tensor, in the network's order
    file: exact bytes of the files that `quantize` writes; None if the tokenizer files are not there
    notes: differences from the named format
    formats: format of each tensor that a safetensors folder stores as codes
    like: the format whose loss the types really have: another one if rows do not fit the named one; None if it is none
        that was measured
    makeable: whether `quantize` makes it of this model; notes say why not
    """

    target: str
    tensors: Mapping[str, int]
    file: int | None = None
    notes: tuple[str, ...] = ()
    formats: Mapping[str, Format] = field(default_factory=dict)
    like: Target | None = None
    makeable: bool = True

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(self.tensors.values())

    def layer_bytes(self, network: Network) -> list[int]:
        """Bytes of each layer's tensors. Embedding and head belong to no layer."""
        found = [0] * network.layers
        for name, nbytes in self.tensors.items():
            if 0 <= layer_of(name) < network.layers:
                found[layer_of(name)] += nbytes
        return found

    def read_bytes(self, network: Network) -> float:
        """Bytes read for one generated token; `Network.used` gives each tensor's share."""
        rotary = sum(self.tensors.get(tensor.name, 0) for tensor in network.rotary)
        return rotary + sum(self.tensors[tensor.name] * network.used(tensor) for tensor in network.tensors)


def parse_target(text: str) -> Target:
    """The target of `--format`. It is like `--to`, but a bare name that is no GGUF mix means native/NAME; fp16 is f16.

    Raises UsageError for an unknown name.
    """
    try:
        return _parsed(text)
    except UsageError as error:
        raise UsageError(error.message.replace("--to", "--format")) from None


def _parsed(text: str) -> Target:
    name = _ALIASES.get(text.strip().lower(), text.strip().lower())
    if "/" not in name and name not in {*MIXES, *ALIASES}:
        try:
            get_format(name)
        except UsageError:
            find_mix(name)  # its error names mixes and formats
        return Target("native", name)
    target = Target.parse(name)
    if target.container == "gguf":
        return Target("gguf", find_mix(target.name).name)
    if target.container == "native" and target.name not in WRITTEN_FLOATS:
        get_format(target.name)
    elif target.container != "native":
        parse(target.container, target.name)
    return target


def stored(network: Network, target: Target) -> Stored:
    """The network in a format. Raises UnsupportedError if no matrix can be stored in it."""
    if target.container == "gguf":
        return _in_gguf(network, target)
    if target.container == "native":
        return _by_codec(network, target, _native_codec(target.name))
    return _by_codec(network, target, _scheme_codec(network, target))


def as_it_is(network: Network, *, file: int | None = None) -> Stored:
    """The network with the types and bytes that its file has now."""
    found = {tensor.name: _layout_format(tensor.layout) for tensor in network.tensors}
    formats = {name: format for name, format in found.items() if format is not None}
    return Stored("as it is", {tensor.name: tensor.nbytes for tensor in network.tensors}, file, formats=formats)


def _layout_format(layout: str) -> Format | None:
    """The format in a layout's name, for example "gptq/int4-g128". None for ggml's types, floats and unknown names."""
    container, slash, name = layout.partition("/")
    try:
        return get_format(name.removeprefix("pack-")) if slash and container else None
    except UsageError:
        return None


def rule_of_thumb(network: Network, target: Target, count: int) -> Stored:
    """A bare count of weights in a format: nominal bits times weights. For mixes, the bits are those of `network`.

    The bytes are divided among tensors as in `network`, the nearest built-in shape.
    """
    like = stored(network, target)
    if target.container == "gguf" and target.name not in WRITTEN_FLOATS:
        bits = 8 * like.total / network.parameters
    elif target.name in WRITTEN_FLOATS:
        bits = 8.0 * NUMBERS.width(target.name)
    elif target.container == "native":
        bits = float(get_format(target.name).bits)
    else:
        bits = float(parse(target.container, target.name).bits)
    scale = count * bits / 8 / like.total
    label = target.name if target.container in ("native", "gguf") else str(target)
    return Stored(label, {name: round(nbytes * scale) for name, nbytes in like.tensors.items()}, like=target)


def gguf_types(network: Network, target: Target) -> dict[str, str]:
    """The type of each tensor in a GGUF file, by its name. Raises UnsupportedError if no matrix can be stored in it."""
    chosen = _chosen(network, target)
    return {tensor.name: choice.type for tensor, choice in zip(network.tensors, chosen.choices, strict=True)}


def _chosen(network: Network, target: Target) -> Selection:
    shape = ModelShape(network.arch, network.layers, network.heads, network.kv_heads, network.experts)
    plain = [
        t if t.name.endswith((".weight", ".bias")) else replace(t, name=f"{t.name}.weight") for t in network.tensors
    ]
    chosen = choose_types(target.name, shape, plain)
    if needy_tensors(target.name, ((choice.name, choice.type) for choice in chosen.choices)):
        chosen = choose_types(target.name, shape, plain, importance=True)  # quantize will calibrate
    return chosen


def _in_gguf(network: Network, target: Target) -> Stored:
    chosen = _chosen(network, target)
    found = {
        tensor.name: TYPES[choice.type].row_bytes(tensor.cols) * tensor.rows
        for tensor, choice in zip(network.tensors, chosen.choices, strict=True)
    }
    rotary = {tensor.name: tensor.nbytes for tensor in network.rotary}
    return Stored(target.name, found | rotary, notes=chosen.warnings, like=_like(network, target, chosen.choices))


def _like(network: Network, target: Target, choices: Sequence[TypeChoice]) -> Target | None:
    """The mix whose loss the chosen types have: the mix itself, a type that all matrices fell back to, or None."""
    sizes = [(tensor.parameters, choice) for tensor, choice in zip(network.tensors, choices, strict=True)]
    matrices = [(size, choice) for size, choice in sizes if not choice.kept]
    fallen = sum(size for size, choice in matrices if choice.fallback)
    if fallen <= _FALLEN * sum(size for size, _ in matrices):
        return target
    types = {choice.type for _, choice in matrices}
    return Target("gguf", types.pop()) if len(types) == 1 else None


def _by_codec(network: Network, target: Target, codec_of: Callable[[TensorInfo], Codec | None]) -> Stored:
    """Matrices take the bytes of their codec; each expert is one matrix. Other tensors keep their floats or 16 bits."""
    found, left, formats = {}, [], {}
    for tensor in network.tensors:
        codec = None if _whole(tensor) else codec_of(tensor)
        if codec is None and not _whole(tensor):
            left.append(tensor.name)
        found[tensor.name] = _float_bytes(tensor, target) if codec is None else _coded_bytes(tensor, codec)
        if codec is not None:
            formats[tensor.name] = codec.format
    if target.name not in WRITTEN_FLOATS and len(left) == sum(not _whole(tensor) for tensor in network.tensors):
        raise UnsupportedError(
            f"{network.name}: no matrix can be stored as {target}: its row lengths do not divide by the group or "
            "block; use another format."
        )
    left = [] if target.name in WRITTEN_FLOATS else left
    plain = sum(tensor.parameters for tensor in network.tensors if tensor.name in set(left))
    matrices = sum(tensor.parameters for tensor in network.tensors if not _whole(tensor))
    like = target if plain <= _FALLEN * matrices else None
    notes = (f"{len(left)} matrices stay in 16 bits, the first is {left[0]}",) if left else ()
    return Stored(str(target), found, notes=notes, formats=formats, like=like)


def _whole(tensor: TensorInfo) -> bool:
    """Whether a tensor stays in floats: vectors, embedding, head, routers, convolutions."""
    return (
        len(tensor.shape) < 2
        or _KEPT.search(tensor.name.split(".", 2)[-1] if layer_of(tensor.name) >= 0 else tensor.name) is not None
    )


def _float_bytes(tensor: TensorInfo, target: Target) -> int:
    own = NUMBERS.width(tensor.layout) if tensor.layout in WRITTEN_FLOATS else 2
    if target.name in WRITTEN_FLOATS and len(tensor.shape) > 1:
        own = NUMBERS.width(target.name)
    elif target.container != "native" and len(tensor.shape) > 1:
        own = 2
    return tensor.parameters * own


def _coded_bytes(tensor: TensorInfo, codec: Codec) -> int:
    parts = codec.layout(tensor.shape[-2:])
    one = sum(math.prod(shape) * dtype.itemsize for shape, dtype in parts.values())
    return one * math.prod(tensor.shape[:-2])


def _native_codec(name: str) -> Callable[[TensorInfo], Codec | None]:
    def codec(tensor: TensorInfo) -> Codec | None:
        try:
            return None if name in WRITTEN_FLOATS else codec_for("native", resolve(name, tensor.cols))
        except UnsupportedError:
            return None

    return codec


def _scheme_codec(network: Network, target: Target) -> Callable[[TensorInfo], Codec | None]:
    """Codecs of a scheme. All tensors have one group size: the largest of 128, 64 and 32 that divides every row."""
    scheme = parse(target.container, target.name)
    matrices = [tensor for tensor in network.tensors if not _whole(tensor)]
    if scheme.group is None:
        fits = (g for g in scheme.groups if all(tensor.cols % g == 0 for tensor in matrices))
        group = next(fits, min(scheme.groups))
        scheme = replace(scheme, group=group)
    container = find_container(target.container)
    assert isinstance(container, ModuleContainer)
    _, made = container.stored(scheme, container.precision or "bf16", container.version([scheme]))

    def codec(tensor: TensorInfo) -> Codec | None:
        try:
            made.layout(tensor.shape[-2:])
        except UnsupportedError:
            return None
        return made

    return codec
