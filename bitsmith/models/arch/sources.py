"""How each tensor of the decoder is made of the tensors in a file, and each tensor of a folder of those of GGUF.

Names and values of the decoder's tensors are GGUF's; only rows of q and k keep the file's order. Hugging Face's folders
may store experts apart, norms without their 1, matrices transposed, or gate and up interleaved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bitsmith.containers.derived import Derived, Piece
from bitsmith.containers.floats import MXFP4_STACK
from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.block import DELTA, expected_tensors
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.delta_sources import HF_NAMES as DELTA_NAMES
from bitsmith.models.arch.delta_sources import relaid
from bitsmith.models.arch.names import STACK, Names, names_of
from bitsmith.quant.tensor import TensorInfo

Shape = tuple[int, ...]


@dataclass(frozen=True)
class FileTensors:
    """The tensors that a file of a model must hold.

    wanted: shape of each, by the file's names
    places: the file's or derived name of each tensor of the decoder, by GGUF name
    derived: tensors of the decoder that the file does not hold as such, by GGUF name
    apart: by the file's names of stacks of experts: the matrices of experts in them, as most folders store them, one by
        one, by Hugging Face name
    published: the names in such folders
    """

    names: Names
    wanted: Mapping[str, Shape]
    places: Mapping[str, str]
    derived: Mapping[str, Derived] = field(default_factory=dict)
    apart: Mapping[str, Mapping[str, Derived]] = field(default_factory=dict)
    published: Names | None = None


def gguf_file_tensors(config: ModelConfig, found: Mapping[str, TensorInfo]) -> FileTensors:
    """Those of a GGUF file. found: the file's tensors"""
    names, stored = names_of(config.family), _stored_in_gguf(config, found)
    wanted = expected_tensors(stored)
    places = {name: name for name in expected_tensors(config)}
    return FileTensors(names, wanted, places, dict(_relaid(config, stored)))


def _stored_in_gguf(config: ModelConfig, found: Mapping[str, TensorInfo]) -> ModelConfig:
    """The configuration with its gated delta nets as the file has them. Old files have fused ones."""
    stored = config.laid_out("gguf")
    if stored.delta is None:
        return stored
    fused = any(name.endswith(".ssm_in.weight") for name in found)
    return replace(stored, delta=replace(stored.delta, fused=fused))


def _relaid(config: ModelConfig, stored: ModelConfig) -> Iterator[tuple[str, Derived]]:
    """The tensors of gated delta nets whose rows or columns lie otherwise in the file, by GGUF name."""
    if config.delta is None or stored.delta is None or config.delta == stored.delta:
        return
    for layer in config.delta.layers:
        blk = f"blk.{layer}."
        for tensor in DELTA.tensors(config, layer):
            derived = relaid(tensor.stored, tensor.shape, config.delta, stored.delta, blk)
            if derived is not None:
                yield f"{blk}{tensor.stored}", derived


def hf_file_tensors(config: ModelConfig, found: Mapping[str, TensorInfo]) -> FileTensors:
    """Those of a Hugging Face folder.

    found: the folder's tensors; where there are several ways to store a tensor, they say which one it is
    """
    published, stored = names_of(config.family).wrapped(found), config.laid_out("hf")
    row = config.decoder.experts
    stacks = row is not None and not row.interleaved and any(name.endswith(STACK) for name in found)
    names = published.stacked() if stacks else published
    wanted: dict[str, Shape] = {}
    places: dict[str, str] = {}
    derived: dict[str, Derived] = {}
    apart: dict[str, dict[str, Derived]] = {}
    for name, shape in expected_tensors(stored).items():
        theirs = names.hf(name)
        shift = config.norm_offset(name)
        if theirs is not None and not shift:
            wanted[theirs], places[name] = shape, theirs
            continue
        if theirs is not None:
            own: dict[str, Shape] = {theirs: shape}
            made = Derived(shape, (Piece(theirs, 0, math.prod(shape[:-1])),), shift)
        else:
            own, made = _stored(config, names, name, shape, found)
            stack = next(iter(own))
            if not (row and row.interleaved) and stack.endswith((STACK, ".mlp.experts.down_proj")):
                apart.setdefault(stack, {}).update(_apart(published, name, shape, made.pieces))
        wanted |= own
        places[name] = name
        derived[name] = made
    for name, order in _relaid(config, stored):
        places[name], derived[name] = name, _through(order, places, derived)
    kept = expected_tensors(config)
    derived = {name: each for name, each in derived.items() if name in kept}
    return FileTensors(names, wanted, {name: places[name] for name in kept}, derived, apart, published)


def _through(order: Derived, places: Mapping[str, str], derived: Mapping[str, Derived]) -> Derived:
    """An order of tensors by GGUF name, as one of the folder's tensors."""
    first = derived.get(order.pieces[0].name)
    if first is None:
        return replace(order, pieces=tuple(replace(each, name=places[each.name]) for each in order.pieces))
    (below,) = first.pieces  # a whole tensor of another shape or with a function
    return replace(
        order, pieces=tuple(replace(each, name=below.name) for each in order.pieces), function=first.function
    )


def _stored(
    config: ModelConfig, names: Names, name: str, shape: Shape, found: Mapping[str, TensorInfo]
) -> tuple[dict[str, Shape], Derived]:
    """The tensors of a folder that hold a tensor which it does not name alike, and how they form it."""
    _, layer, part = name.split(".", 2)
    above = f"{names.prefix}layers.{layer}."
    if part in DELTA_NAMES:
        own = f"{above}{DELTA_NAMES[part]}"
        stored = (shape[0], 1, shape[1]) if len(shape) == 2 else shape
        whole = Piece(own, 0, math.prod(shape[:-1]))
        return {own: stored}, Derived(shape, (whole,), function="-exp(x)" if part == "ssm_a" else "")
    own_shapes, pieces = _experts(config, names, name, shape, found)
    return own_shapes, Derived(shape, pieces)


def _experts(
    config: ModelConfig, names: Names, name: str, shape: Shape, found: Mapping[str, TensorInfo]
) -> tuple[dict[str, Shape], tuple[Piece, ...]]:
    """The tensors of a folder that hold a stack of experts, and their rows that form it."""
    stem, _, kind = name.rpartition(".")
    row = config.decoder.experts
    if row is not None and row.interleaved:
        return _interleaved(names, stem, kind, shape, found)
    stacked = _stacked(config, names, stem, shape, found)
    if stacked is not None:
        return stacked
    first = str(names.hf(f"{stem}.0.{kind}"))
    if first not in found:  # which is an error; the names of thousands of others would be made for nothing
        return {first: shape[1:]}, (Piece(first, 0, 1),)
    apart = [str(names.hf(f"{stem}.{e}.{kind}")) for e in range(shape[0])]
    rows = shape[1] if len(shape) == 3 else 1
    return dict.fromkeys(apart, shape[1:]), tuple(Piece(own, 0, rows) for own in apart)


def _stacked(
    config: ModelConfig, names: Names, stem: str, shape: Shape, found: Mapping[str, TensorInfo]
) -> tuple[dict[str, Shape], tuple[Piece, ...]] | None:
    """The same for a layer whose experts lie in two stacks, the gate's rows before those of up; None for others.

    Stacks are [experts, rows, cols], or [experts, cols, rows] as Qwen3-VL publishes them; the shapes say which.
    """
    _, layer, part = stem.split(".")
    above = f"{names.prefix}layers.{layer}.mlp.experts."
    gate_up, down = f"{above}gate_up_proj", f"{above}down_proj"
    if gate_up not in found or len(shape) != 3 or config.experts is None:
        return None
    count, width, hidden = config.experts.count, config.experts.width, config.hidden
    plain = {gate_up: (count, 2 * width, hidden), down: (count, hidden, width)}
    turned = {name: (e, cols, rows) for name, (e, rows, cols) in plain.items()}

    def fits(shapes: Mapping[str, Shape]) -> bool:
        return all(name in found and tuple(found[name].shape) == wanted for name, wanted in shapes.items())

    transposed = fits(turned) and not fits(plain)
    stack, turn = (down, 0) if part.startswith("ffn_down") else (gate_up, int(part.startswith("ffn_up")))
    _, rows, _ = shape
    if transposed:
        return {stack: turned[stack]}, tuple(Piece(stack, turn * rows, rows, matrix=e) for e in range(count))
    all_rows = plain[stack][1]
    return {stack: plain[stack]}, tuple(Piece(stack, e * all_rows + turn * rows, rows) for e in range(count))


def _apart(names: Names, name: str, shape: Shape, pieces: Sequence[Piece]) -> dict[str, Derived]:
    """The matrices of a stack one by one, by Hugging Face name. pieces: one a matrix"""
    stem, _, kind = name.rpartition(".")
    return {str(names.hf(f"{stem}.{e}.{kind}")): Derived(shape[1:], (piece,)) for e, piece in enumerate(pieces)}


def _interleaved(
    names: Names, stem: str, kind: str, shape: Shape, found: Mapping[str, TensorInfo]
) -> tuple[dict[str, Shape], tuple[Piece, ...]]:
    """The same for gpt-oss: gate and up in turn in one stack, transposed in 16 bits and not in MXFP4; and sinks."""
    _, layer, part = stem.split(".")
    above = f"{names.prefix}layers.{layer}."
    if part == "attn_sinks":
        own = f"{above}self_attn.sinks"
        return {own: shape}, (Piece(own, 0, 1),)
    down = part.startswith("ffn_down")
    turn, step = (0, 1) if down else (int(part.startswith("ffn_up")), 2)
    stack = f"{above}mlp.experts.{'down' if down else 'gate_up'}_proj"
    if kind == "bias":
        own = f"{stack}_bias"
        return {own: (shape[0], step * shape[1])}, (Piece(own, 0, shape[0], columns=(turn, step)),)
    count, rows, cols = shape
    if stack in found and found[stack].layout == MXFP4_STACK:
        return {stack: (count, step * rows, cols)}, (Piece(stack, turn, count * rows, step),)
    pieces = tuple(Piece(stack, turn, rows, step, matrix=e) for e in range(count))
    return {stack: (count, cols, step * rows)}, pieces


def hf_tensors_of_gguf(config: ModelConfig) -> tuple[dict[str, str], dict[str, Derived]]:
    """The tensors of a Hugging Face folder made from a GGUF file.

    Returns the name in the GGUF file, or of a derived tensor, by Hugging Face name; and the derived tensors.
    """
    names = names_of(config.family)
    places: dict[str, str] = {}
    derived: dict[str, Derived] = {}
    for name, shape in expected_tensors(config).items():
        for theirs, own in _hf_parts(config, names, name, shape):
            places[theirs] = name if own is None else theirs
            if own is not None:
                derived[theirs] = own
    return places, derived


def _hf_parts(config: ModelConfig, names: Names, name: str, shape: Shape) -> Iterator[tuple[str, Derived | None]]:
    theirs = names.hf(name)
    whole = Piece(name, 0, math.prod(shape[:-1]))
    if theirs is not None:
        offset = config.norm_offset(name)
        yield theirs, Derived(shape, (whole,), -offset) if offset else None
        return
    _, layer, part = name.split(".", 2)
    above = f"{names.prefix}layers.{layer}."
    if part in DELTA_NAMES:
        stored = (shape[0], 1, shape[1]) if len(shape) == 2 else shape
        yield f"{above}{DELTA_NAMES[part]}", Derived(stored, (whole,), function="ln(-x)" if part == "ssm_a" else "")
        return
    stem, _, kind = name.rpartition(".")
    row = config.decoder.experts
    if row is not None and row.interleaved:
        raise UnsupportedError(
            f"{name} has no place in a {config.arch} folder of transformers, which stores gate and up in turn and "
            "transposed; write a GGUF file, for instance --to=q4_k_m."
        )
    rows = shape[1] if len(shape) == 3 else 1
    for e in range(shape[0]):
        yield str(names.hf(f"{stem}.{e}.{kind}")), Derived(shape[1:], (Piece(name, e * rows, rows),))
