"""Codes that a file holds already, from which a training goes on in place of rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.adapter import tensor_hashes
from bitsmith.models.arch.names import is_permuted, permute_rows, unpermute_rows
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.models.manifests import manifests_of
from bitsmith.quant.formats.base import Format
from bitsmith.quant.tensor import QuantTensor
from bitsmith.recipe.rounded_rows import RoundedRows
from bitsmith.runtime.torch.core_ops import pass_ops
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.weights import WeightLoader, weight_reader


def check_start(start: Checkpoint, original: Checkpoint, formats: Mapping[str, Format]) -> bool:
    """Whether a file is known to be made from an original. Reads headers and a few tensors of the original.

    formats: of each linear of the output, by GGUF name without ".weight"
    False where it does not say what it was made from. Raises FileError for a file of another model or other formats,
    UnsupportedError for a mixture of experts.
    """
    if original.config.experts is not None:
        raise UnsupportedError(f"{start.source.path}: going on from codes is not supported for mixtures of experts.")
    own, theirs = weight_reader(original), weight_reader(start)
    for name, format in formats.items():
        wanted, info = own(f"{name}.weight").info, theirs(f"{name}.weight").info
        if info.shape != wanted.shape:
            raise FileError(
                f"{start.source.path}: {name} is {list(info.shape)}, that of {original.name} is {list(wanted.shape)}; "
                "give a file that was made from this model."
            )
        tensor = theirs(f"{name}.weight").codes(0, 1)
        if tensor is None or tensor.format.name != format.name:
            found = info.layout if tensor is None else tensor.format.name
            raise FileError(
                f"{start.source.path}: {name} is in {found}, and would become {format.name}; give the --to and the "
                "other options that the file was made with."
            )
    if original.naming != "hf":  # their hashes are by Hugging Face's names
        return False
    places = [original.place(f"{name}.weight") for name in formats]
    few = sorted({places[0], places[len(places) // 2], places[-1]}) if places else []
    seen = {record.name: record.source_sha256 for each in manifests_of(start.source) for record in each.tensors}
    known = False
    for place, hashed in tensor_hashes(original, few).items():
        made = seen.get(place if start.naming == "hf" else start.names.gguf(place) or "")
        if made is not None and made != hashed:
            raise FileError(
                f"{start.source.path}: it was made from another model than {original.name}: {place} has other weights "
                "there. Give the model that the file was made from."
            )
        known = known or made is not None
    return known


def stored_rows(start: Checkpoint, original: Checkpoint, formats: Mapping[str, Format]) -> Iterator[RoundedRows]:
    """The linears and the norms of a file, as a rounding of the original would give them.

    formats: see `check_start`, which must have passed
    Rows are in the original's order; weights are the original's.
    """
    own, theirs = weight_reader(original), weight_reader(start)
    for name in formats:
        full = f"{name}.weight"
        rows = own(full).info.rows
        tensor = theirs(full).codes(0, rows)
        assert tensor is not None
        weight = own(full).rows(0, rows)
        yield RoundedRows(full, 0, weight, _in_order(tensor, weight.shape, _turned(full, start, original)))
    loader = WeightLoader(start.config, theirs, DenseKernel(device="cpu"), pass_ops("cpu"), "cpu")
    there = start.places
    for layer in range(start.config.layers):
        for name in start.config.family.norms.names:
            stored = f"blk.{layer}.{name}.weight"
            if stored in there:
                yield RoundedRows(stored, 0, loader.vector(stored).numpy().reshape(1, -1), None)


def _turned(name: str, start: Checkpoint, original: Checkpoint) -> Callable[[np.ndarray], np.ndarray] | None:
    """What brings the rows of q and k into the original's order: some families have others in GGUF than in folders."""
    interleaved = original.config.rope.interleaved
    if not is_permuted(name) or interleaved == start.config.rope.interleaved:
        return None
    heads = original.config.heads if ".attn_q." in name else original.config.kv_heads
    turn = permute_rows if interleaved else unpermute_rows
    return lambda rows: turn(rows, heads)


def _in_order(
    tensor: QuantTensor, shape: tuple[int, ...], turn: Callable[[np.ndarray], np.ndarray] | None
) -> QuantTensor:
    """The codes with their rows in another order. shape: of the weights"""
    if turn is None:
        return tensor
    order = turn(np.arange(shape[0]))
    layout = tensor.format.params_layout(shape[0], shape[1])
    params = {
        name: np.asarray(values)[order] if layout[name][0][:1] == shape[:1] else values
        for name, values in tensor.params.items()
    }
    return QuantTensor(tensor.format, np.asarray(tensor.codes)[order], params)
