"""The census before every write: each weight of the source lands, at stated bits, under a name that the target loads.

A run that loses a tensor, writes it under a name that no runtime asks for, or lists modules in a configuration under
names that do not exist, gives a file that loads and answers nonsense. The census counts before any byte is written.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bitsmith.containers import find_container
from bitsmith.containers.bounded_json import parse_json
from bitsmith.containers.container import ModuleContainer
from bitsmith.containers.derived import DerivedSource
from bitsmith.containers.hf_folder import CONFIG
from bitsmith.containers.module_lists import all_spellings, spellings
from bitsmith.errors import BitsmithError, FileError, UnsupportedError
from bitsmith.models.arch.names import Naming, beside_decoder, drafts, skipped
from bitsmith.models.arch.tensors import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, check_tensors
from bitsmith.models.checkpoint import Checkpoint, contradiction
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.folder import is_linear
from bitsmith.recipe.plan import Assignment, PlannedTensor


@dataclass(frozen=True)
class Census:
    """What a plan does with the weights of its source.

    tensors, weights: number of tensors and of weights that land
    bits: number of weights by the layout that they get
    left: tensors of the source that are not written, each with the reason
    unquantized: linear modules that the target's configuration names as not quantized
    """

    tensors: int
    weights: int
    bits: Mapping[str, int]
    left: Mapping[str, str]
    unquantized: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "tensors": self.tensors,
            "weights": self.weights,
            "weights_by_layout": dict(self.bits),
            "left": dict(self.left),
            "unquantized": list(self.unquantized),
        }


def take_census(assignment: Assignment) -> Census:
    """Count the weights of a plan.

    Raises FileError or UnsupportedError, naming the tensor, if a weight of the source has no place, if a tensor's bytes
    are not those that its type says, if a name is not one that the target loads, and if a list of modules in the
    configuration does not fit the modules that are written.
    """
    left = _left(assignment)
    _check_bytes(assignment)
    _check_names(assignment)
    unquantized = _check_lists(assignment)
    bits: Counter[str] = Counter()
    for tensor in assignment.tensors:
        bits[tensor.info.layout] += tensor.info.parameters
    return Census(len(assignment.tensors), sum(bits.values()), dict(bits), left, unquantized)


def _left(assignment: Assignment) -> dict[str, str]:
    """Tensors of the source that no output tensor holds, with the reason.

    Raises UnsupportedError for a tensor without a reason, or of which only a part lands.
    """
    checkpoint, landed = assignment.checkpoint, Counter[str]()
    for tensor in assignment.tensors:
        for name, weights in _origins(checkpoint, tensor):
            landed[name] += weights
    left = {}
    for name, info in checkpoint.source.tensors.items():
        if landed[name] >= info.parameters:
            continue
        reason = "not of the text decoder" if assignment.target.is_mmproj else _reason(assignment, name)
        if not reason or (landed[name] and not assignment.target.is_mmproj):  # an mmproj may take one row of a table
            raise UnsupportedError(
                f"{checkpoint.source.path}: {name} has {info.parameters:,} weights, of which {landed[name]:,} have a "
                f"place in the output ({assignment.target}); nothing was written. Choose another --to, and report it."
            )
        left[name] = reason
    return left


def _origins(checkpoint: Checkpoint, tensor: PlannedTensor) -> Iterator[tuple[str, int]]:
    """The tensors of the source that an output tensor is made of, and the number of weights from each."""
    if tensor.source is None:
        return
    found: Any = checkpoint.reader
    name = tensor.source
    while isinstance(found, DerivedSource):
        if name in found.derived:
            for piece in found.derived[name].pieces:
                info = checkpoint.source.tensors.get(piece.name)
                if info is not None:
                    width = piece.columns is not None or piece.matrix is not None
                    cols = tensor.info.parameters // max(tensor.info.rows, 1) if width else info.cols
                    yield piece.name, piece.count * cols
            return
        found = found.base
    yield name, tensor.info.parameters


def _reason(assignment: Assignment, name: str) -> str:
    """Why a tensor of the source is not written; "" if there is no reason."""
    checkpoint = assignment.checkpoint
    if isinstance(checkpoint.shape, BitsmithError):
        return ""
    config = checkpoint.shape
    if drafts(name, config.layers):
        return "layers that draft tokens"
    if checkpoint.naming == "gguf" and name in (ROPE_FREQS, ROPE_LONG, ROPE_SHORT):
        return "stands in config.json"
    if checkpoint.naming == "hf" and skipped(name, tied=config.tied):
        return "a buffer, or the embedding again"
    if assignment.target.container == "gguf" and beside_decoder(name):
        return "a tower for images or sound; --to=mmproj writes it"
    return "zeros, or of no use to the decoder" if name in checkpoint.ignored else ""


def _check_bytes(assignment: Assignment) -> None:
    """Raise UnsupportedError if the bytes of a tensor are not those of its type."""
    for tensor in assignment.tensors:
        held = sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensor.parts.values())
        if held != tensor.info.nbytes:
            raise UnsupportedError(
                f"{tensor.info.name}: {tensor.info.layout} of {list(tensor.info.shape)} is {tensor.info.nbytes:,} "
                f"bytes, but its parts have {held:,}; nothing was written. This is an error of bitsmith: report it."
            )


def _check_names(assignment: Assignment) -> None:
    """Raise FileError if the output lacks a tensor that its loaders ask for, or has one that they do not know.

    A source that contradicts its own configuration is written as it is; a warning of the plan says so.
    """
    checkpoint, target = assignment.checkpoint, assignment.target
    twice = [name for name, count in Counter(t.info.name for t in assignment.tensors).items() if count > 1]
    if twice:
        raise FileError(f"{target}: two tensors would be called {twice[0]}; nothing was written.")
    if isinstance(checkpoint.shape, BitsmithError) or target.is_mmproj or assignment.keeps_bytes:
        return
    if contradiction(checkpoint) is not None:
        return
    infos: dict[str, TensorInfo] = {tensor.info.name: tensor.info for tensor in assignment.tensors}
    naming: Naming = "gguf" if target.container == "gguf" else "hf"
    left = {name for name in infos if drafts(name, checkpoint.shape.layers)}
    origin = f"the output ({target})"
    check_tensors(checkpoint.shape, infos, naming=naming, origin=origin, ignored={*checkpoint.ignored, *left})


def _check_lists(assignment: Assignment) -> tuple[str, ...]:
    """The linear modules that the configuration names as not quantized.

    Raises UnsupportedError if runtimes would take another set of modules for quantized ones than is written.
    """
    container = find_container(assignment.target.container)
    if not isinstance(container, ModuleContainer) or container.kept_list is None or assignment.keeps_bytes:
        return ()
    said = parse_json(assignment.extras[CONFIG], CONFIG)[container.config_keys[0]]
    entries = container.kept_list(said)
    return checked_list(entries, container.skipped_by, assignment.tensors)


def checked_list(
    entries: Sequence[str],
    skipped_by: Callable[[Collection[str], Iterable[str]], set[str]],
    tensors: Sequence[PlannedTensor],
) -> tuple[str, ...]:
    """The linear modules that a list of modules in 16 bits names.

    entries: the list in the configuration
    skipped_by: (list, names of modules) -> the names that runtimes skip
    Raises UnsupportedError if the list names a module with codes, does not name a linear in 16 bits, or has an entry
    that names nothing.
    """
    coded = {_module(each) for each in tensors if each.format is not None}
    plain = {_module(each) for each in tensors if each.format is None and is_linear(each.info)}
    for spelled in (lambda name: name, lambda name: spellings(name)[-1]):
        own = {spelled(name): name for name in (*coded, *plain)}
        skipped = {own[name] for name in skipped_by(entries, own)}
        wrong = sorted(skipped & coded)
        if wrong:
            raise UnsupportedError(
                f"{wrong[0]} gets codes, but runtimes would read it as plain weights, because the list of modules that "
                f"stay in 16 bits names a part of it{_more(wrong)}; nothing was written. Keep it too, with "
                f"--keep='^{re.escape(wrong[0])}', or write --to=compressed/w4a16."
            )
        missing = sorted(plain - skipped)
        if missing:
            raise UnsupportedError(
                f"{missing[0]} stays in 16 bits, but the configuration does not say so under the name that runtimes "
                f"have for it{_more(missing)}; nothing was written. This is an error of bitsmith: report it."
            )
    names = all_spellings((*coded, *plain))
    stale = [each for each in entries if not each.endswith("lm_head") and not skipped_by([each], names)]
    if stale:
        raise UnsupportedError(
            f"the configuration lists {stale[0]} as not quantized, but no module of the output has that name"
            f"{_more(stale)}; nothing was written. This is an error of bitsmith: report it."
        )
    return tuple(sorted(skipped))


def _module(tensor: PlannedTensor) -> str:
    return tensor.info.name.removesuffix(".weight")


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
