"""Quantizing a torch module in place: which parameters, in which format, and the census of what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.quant.formats import resolve
from bitsmith.quant.formats.base import Format
from bitsmith.torch_modules.census import Census, CensusRow
from bitsmith.torch_modules.finding import Place, by_storage, is_matrix, is_table, places, storage_key
from bitsmith.torch_modules.keeping import kept_modules
from bitsmith.torch_modules.precision import AUTO, precision_of
from bitsmith.torch_modules.stored_weight import StoredWeight

MOST_LEFT = 0.05  # share of the weights that may stay without being asked to
_NOWHERE: tuple[Place | None, str] = (None, "")
_HEAD = "the output head; keep=[] quantizes it"


@dataclass(frozen=True)
class _Task:
    """A parameter to quantize, or the reason why it stays."""

    place: Place | None
    parameter: str  # in its module
    format: Format | None
    reason: str = ""
    expected: bool = True


def quantize_module(
    model: nn.Module,
    format: str = "nf4",
    *,
    keep: Sequence[str] | None = None,
    compute_dtype: str | torch.dtype | None = None,
    most_left: float = MOST_LEFT,
) -> Census:
    """Replace the linear layers of any torch module by quantized ones, in place.

    These are `nn.Linear`, transformers' `Conv1D`, and fused experts as transformers 5 has them (one parameter
    [experts, rows, cols] for all). Weights get the nearest codes of the format; biases, norms, embeddings and all else
    stay. Weights that are one parameter in several layers stay shared. Gradients flow through the layers to their
    inputs; the codes are frozen. `state_dict` holds plain tensors, named as in bitsmith's own container.

    format: of `bitsmith.quant.formats`: "nf4", "int4-g64", "int4" (the largest group that divides the rows), "int8",
        "fp8", ...
    keep: modules that stay, by name, end of a name, or with stars: "lm_head", "down_proj", "*.layers.0.*"; None keeps
        the output head of transformers' models, as bitsandbytes does, [] keeps nothing
    compute_dtype: what inputs of products are rounded to at most: "float32", "bfloat16", "float16", or "int8" (in
        blocks of 32; the fastest on CPUs); None takes that of the input. Sums are float32
    most_left: share of the weights of matrices that may stay though nothing asked for it; see `Census.unexpected`
    Returns the census of all parameters.

    Raises UsageError for an unknown format or dtype, a name in `keep` that names nothing, a model that is quantized
    already, and weights without data (the meta device); UnsupportedError where more than `most_left` would stay;
    TensorError for weights that are Inf or NaN. The model is unchanged then, but for Inf and NaN, which are found on
    the way.
    """
    precision = precision_of(compute_dtype)
    _check_unquantized(model)
    tasks = assign(model, format, keep)
    check_share(tasks, model, most_left)
    _check_data(model)
    _check_replaceable(model, tasks)
    census = _replace(model, tasks, precision)
    _attach(model, format, keep, precision)
    return census


def assign(model: nn.Module, format: str, keep: Sequence[str] | None) -> dict[str, _Task]:
    """What becomes of every parameter, by the first of its names. Nothing is changed."""
    resolve(format, 1 << 20)  # is there such a format?
    kept = kept_modules(keep or (), (name for name, _ in model.named_modules(remove_duplicate=False)))
    head = _output_head(model) if keep is None else None
    found: dict[int, tuple[Place | None, str]] = {}
    for each in places(model):
        for parameter in each.kind.weights(each.module):
            found[id(each.module._parameters[parameter])] = each, parameter
    aliases = by_storage(model)
    owners = dict(model.named_modules(remove_duplicate=False))
    tasks: dict[str, _Task] = {}
    for name, weight in model.named_parameters():
        names = aliases[storage_key(weight)]
        if names[0] != name:
            continue
        owner = owners[name.rpartition(".")[0]]
        place, parameter = found.get(id(weight), _NOWHERE)
        reason, expected = _reason_to_stay(weight, names, owners, owner, kept, head, place)
        resolved = None
        if not reason:
            assert place is not None
            try:
                resolved = resolve(format, place.matrix(parameter).shape[-1])
            except UnsupportedError as error:
                reason, expected = error.message, False
        tasks[name] = _Task(place, parameter, resolved, reason, expected)
    return tasks


def _reason_to_stay(
    weight: Tensor,
    names: list[str],
    owners: dict[str, nn.Module],
    owner: nn.Module,
    kept: dict[str, str],
    head: nn.Module | None,
    place: Place | None,
) -> tuple[str, bool]:
    """Why a parameter stays, and whether that was to be expected; ("", True) for one to quantize."""
    modules = [name.rpartition(".")[0] for name in names]
    for name in modules:
        if name in kept:
            return f"keep={kept[name]!r}", True
    if not is_matrix(names[0], weight):
        return "a bias" if names[0].endswith("bias") else "no matrix", True
    tables = [name for name in modules if is_table(owners[name])]
    if tables:
        shared = [name for name in modules if name not in tables]
        return (f"a table of rows, shared with {', '.join(shared)}" if shared else "a table of rows"), True
    if head is not None and any(owners[name] is head for name in modules):
        return _HEAD, True
    if place is None and isinstance(owner, nn.Linear):
        return f"of {type(owner).__name__}, which another module reads or which computes in its own way", False
    if place is None:
        return f"of {type(owner).__name__}, no linear layer and no fused experts that bitsmith knows", False
    return "", True


def _attach(model: nn.Module, format: str, keep: Sequence[str] | None, precision: str) -> None:
    """Models of transformers know how they are quantized, so that they are saved and loaded."""
    if hasattr(model, "save_pretrained") and type(model).__module__.startswith("transformers."):
        try:
            from bitsmith.torch_modules.hf_quantizer import BitsmithConfig, attach
        except ImportError:  # transformers is too old for it, which `bitsmith.torch` has said
            return
        attach(model, BitsmithConfig(format, keep, None if precision == AUTO else precision))


def _output_head(model: nn.Module) -> nn.Module | None:
    """The output head of a model of transformers."""
    find = getattr(model, "get_output_embeddings", None)
    found = find() if callable(find) else None
    return found if isinstance(found, nn.Module) else None


def _check_unquantized(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, StoredWeight):
            raise UsageError(f"{name} is quantized already, to {module.format.name}; quantize the original model.")
        for own, weight in module._parameters.items():
            if weight is not None and own == "weight" and not weight.dtype.is_floating_point:
                raise UsageError(
                    f"{name}.{own} holds {str(weight.dtype).removeprefix('torch.')}: the model is quantized already; "
                    "quantize the original model."
                )
    if getattr(model, "hf_quantizer", None) is not None:
        raise UsageError("the model was loaded with a quantization of transformers; load the original model.")


def _check_data(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if weight.device.type == "meta":
            raise UsageError(
                f"{name} has no data (it is on the meta device); load the weights first, or use "
                "bitsmith.torch.from_pretrained, which quantizes while it loads."
            )


def _check_replaceable(model: nn.Module, tasks: dict[str, _Task]) -> None:
    """Raises UsageError for a model that is itself a layer to replace."""
    if any(task.place is not None and task.place.module is model and not task.reason for task in tasks.values()):
        raise UsageError(
            f"the model itself is a {type(model).__name__}, which cannot be replaced in place; put it into a module "
            "first: torch.nn.Sequential(layer)."
        )


def check_share(tasks: dict[str, _Task], model: nn.Module, most_left: float) -> None:
    """Raises UnsupportedError where nothing would be quantized, or too much would stay without being asked to."""
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    left = {name: sizes[name] for name, task in tasks.items() if not task.expected}
    whole = sum(sizes[name] for name, task in tasks.items() if not task.reason) + sum(left.values())
    share = sum(left.values()) / max(whole, 1)
    if whole == 0:
        raise UnsupportedError("nothing to quantize: the model has no linear layer or fused experts but those kept.")
    if share > most_left:
        worst = sorted(left, key=lambda name: -left[name])[:4]
        lines = "; ".join(f"{name}: {tasks[name].reason}" for name in worst)
        raise UnsupportedError(
            f"{share:.1%} of the weights would stay as they are, more than most_left={most_left:g}: {lines}. "
            "Name in keep= what shall stay, or give a higher most_left=."
        )


def _replace(model: nn.Module, tasks: dict[str, _Task], precision: str) -> Census:
    aliases = by_storage(model)
    rows: list[CensusRow] = []
    made: dict[int, tuple[Place, dict[str, StoredWeight]]] = {}
    shared: dict[tuple[object, ...], StoredWeight] = {}
    waiting = {name: weight for name, weight in model.named_parameters() if name in tasks}
    for name, task in tasks.items():
        weight = waiting.pop(name)
        key = storage_key(weight)
        names = aliases[key]
        if task.format is None:
            rows.append(_row(name, names, weight, model, task, weight.nbytes, _dtype_name(weight.dtype)))
            continue
        assert task.place is not None
        stored = StoredWeight.quantized(task.place.matrix(task.parameter), task.format, name)
        shared[key] = stored
        rows.append(_row(name, names, weight, model, task, stored.nbytes, task.format.name))
        del weight
        for place in _sharing(model, key) if len(names) > 1 else [task.place]:
            _, weights = made.setdefault(id(place.module), (place, {}))
            for parameter in place.kind.weights(place.module):
                own = place.module._parameters[parameter]
                if own is not None and storage_key(own) == key:
                    weights[parameter] = stored
            if set(weights) == set(place.kind.weights(place.module)):
                put(model, place, place.kind.replaced(place.module, weights, precision))
    return Census(tuple(rows))


def _sharing(model: nn.Module, key: tuple[object, ...]) -> list[Place]:
    """All places with a parameter of that memory."""
    return [
        place
        for place in places(model)
        if any(
            (own := place.module._parameters[parameter]) is not None and storage_key(own) == key
            for parameter in place.kind.weights(place.module)
        )
    ]


def put(model: nn.Module, place: Place, replaced: nn.Module) -> None:
    """Put a module in the place of another, wherever that stands."""
    for name in place.names:
        parent, _, own = name.rpartition(".")
        model.get_submodule(parent)._modules[own] = replaced


def _row(
    name: str, names: list[str], weight: Tensor, model: nn.Module, task: _Task, size: int, stored: str
) -> CensusRow:
    owner = model.get_submodule(name.rpartition(".")[0])
    return CensusRow(
        name,
        type(owner).__name__,
        tuple(weight.shape),
        stored,
        weight.nbytes,
        size,
        task.reason,
        task.expected,
        tuple(names[1:]),
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
