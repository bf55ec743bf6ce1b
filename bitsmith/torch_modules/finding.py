"""What of a module can be quantized: linear layers, transformers' transposed ones, fused experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitsmith.torch_modules.experts import QuantExperts, expert_weights
from bitsmith.torch_modules.linear import QuantLinear
from bitsmith.torch_modules.stored_weight import StoredWeight

Made = dict[str, StoredWeight]  # by the name of the parameter in its module


@dataclass(frozen=True)
class Kind:
    """A kind of module.

    weights: names of its parameters that are matrices, or stacks of them; () where the module is of another kind
    transposed: whether these are stored as [..., cols, rows]
    replaced: the module with these weights in place of its parameters
    """

    name: str
    weights: Callable[[nn.Module], tuple[str, ...]]
    transposed: Callable[[nn.Module], bool]
    replaced: Callable[[nn.Module, Made, str], nn.Module]


def _linear(module: nn.Module) -> tuple[str, ...]:
    own = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    used = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)  # nn.MultiheadAttention reads it
    return ("weight",) if own and not used and not isinstance(module, QuantLinear) else ()


def _conv1d(module: nn.Module) -> tuple[str, ...]:
    kind = type(module)
    return ("weight",) if (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D") else ()


def _as_linear(module: nn.Module, made: Made, precision: str) -> nn.Module:
    del module._parameters["weight"]  # its memory is free now, whoever still holds the module
    replaced = QuantLinear(made["weight"], module._parameters.get("bias"), precision)
    replaced.train(module.training)
    return replaced


def _as_experts(module: nn.Module, made: Made, precision: str) -> nn.Module:
    replaced = QuantExperts(module, made, precision)
    replaced.train(module.training)
    return replaced


KINDS = (
    Kind("linear layer", _linear, lambda module: False, _as_linear),
    Kind("Conv1D", _conv1d, lambda module: True, _as_linear),
    Kind("fused experts", expert_weights, lambda module: bool(module.is_transposed), _as_experts),
)


@dataclass(frozen=True)
class Place:
    """A module that can be quantized.

    names: where it stands in the model; several where it is shared
    """

    module: nn.Module
    kind: Kind
    names: tuple[str, ...]

    def matrix(self, parameter: str) -> Tensor:
        """The weights [..., rows, cols] of one of its parameters."""
        weight = self.module._parameters[parameter]
        assert weight is not None
        return weight.transpose(-1, -2) if self.kind.transposed(self.module) else weight


def places(model: nn.Module) -> Iterator[Place]:
    """All modules of a known kind, in the model's order."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    read = {id(linear) for module in model.modules() for linear in _read_by(module)}
    for module in model.modules():
        if id(module) in read:
            continue
        for kind in KINDS:
            if kind.weights(module):
                yield Place(module, kind, tuple(names[id(module)]))
                break


def _read_by(module: nn.Module) -> tuple[nn.Module, ...]:
    """Layers whose weights a module of torch reads itself, without a call of the layer."""
    return (module.linear1, module.linear2) if isinstance(module, nn.TransformerEncoderLayer) else ()


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter has rows and columns; norms and biases have not."""
    two = parameter.ndim >= 2 and min(parameter.shape[-2:]) > 1 and parameter.dtype.is_floating_point
    return two and not name.rpartition(".")[2].endswith("bias")


def is_table(module: nn.Module) -> bool:
    """Whether a module looks rows up."""
    return isinstance(module, nn.Embedding | nn.EmbeddingBag)


def by_storage(model: nn.Module) -> dict[tuple[int, torch.Size, tuple[int, ...]], list[str]]:
    """Names of parameters that are the same memory, in the same shape."""
    found: dict[tuple[int, torch.Size, tuple[int, ...]], list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(storage_key(parameter), []).append(name)
    return found


def storage_key(parameter: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """What two names of the same memory have in common."""
    where = id(parameter) if parameter.device.type == "meta" or parameter.numel() == 0 else parameter.data_ptr()
    return where, parameter.shape, parameter.stride()
