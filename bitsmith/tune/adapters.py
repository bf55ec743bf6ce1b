"""Adapters: which layers get them, and their files in PEFT's layout."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsmith.errors import UsageError
from bitsmith.models.adapter import CONFIG, RECORD, WEIGHTS
from bitsmith.models.arch.names import beside_decoder
from bitsmith.tune.names import ALL

_ROUTERS = ("gate", "router", "shared_expert_gate")


@dataclass(frozen=True)
class Shape:
    """rank, alpha, dropout: of LoRA (Hu et al. 2021); the product of its two matrices counts alpha / rank times."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


def adapted_modules(model: Any, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers that get adapters, in the model's order.

    targets: "all": every linear layer of the text decoder except output head and routers; else names of modules
        ("q_proj", "layers.0.mlp.up_proj"), with stars too
    Raises UsageError for a target that matches no linear layer.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linears = [name for name, module in model.named_modules() if _is_linear(module)]
    if tuple(targets) == (ALL,):
        found = [
            name
            for name in linears
            if model.get_submodule(name) is not head
            and name.rpartition(".")[2] not in _ROUTERS
            and not beside_decoder(name)
        ]
        if not found:
            raise UsageError("the model has no linear layer that an adapter could stand on.")
        return found
    chosen: set[str] = set()
    for target in targets:
        hit = [name for name in linears if _matches(target, name)]
        if not hit:
            raise UsageError(f"--targets={target} matches no linear layer; {_advice(model, target, linears)}")
        if any(model.get_submodule(name) is head for name in hit) and len(hit) == 1:
            raise UsageError(
                f"--targets={target} is the output head; adapters stand on the layers of the text decoder, because "
                "runtimes and merging take no others."
            )
        chosen.update(name for name in hit if model.get_submodule(name) is not head)
    return [name for name in linears if name in chosen]


def _is_linear(module: nn.Module) -> bool:
    kind = type(module)
    return isinstance(module, nn.Linear) or (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def _matches(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}") or ("*" in target and fnmatchcase(name, target))


def _advice(model: nn.Module, target: str, linears: Sequence[str]) -> str:
    from bitsmith.torch_modules.experts import QuantExperts, expert_weights

    for name, module in model.named_modules():
        if (isinstance(module, QuantExperts) or expert_weights(module)) and _names(target, name, module):
            return "fused experts get no adapters; choose layers of attention, or all."
    ends = sorted({name.rpartition(".")[2] for name in linears})
    near = get_close_matches(target, ends, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"the layers are {', '.join(ends[:12])}."


def _names(target: str, name: str, module: nn.Module) -> bool:
    inner = [f"{name}.{own}" for own in (*module._parameters, *module._modules)]
    return any(_matches(target, each) for each in (name, *inner))


def short_targets(model: nn.Module, modules: Sequence[str]) -> list[str]:
    """The same layers as PEFT's `target_modules`: ends of names where these mean just these layers, else full names.

    vLLM reads ends of names from there.
    """
    ends = sorted({name.rpartition(".")[2] for name in modules})
    meant = {name for name, module in model.named_modules() if name.rpartition(".")[2] in ends and _is_linear(module)}
    return ends if meant == set(modules) else list(modules)


def with_adapters(model: Any, modules: Sequence[str], shape: Shape, base_name: str) -> Any:
    """The model as a `peft.PeftModel` with new adapters: A random, B zero. A is drawn from torch's generator."""
    import peft

    from bitsmith.tune.lora_layer import register

    config = peft.LoraConfig(
        r=shape.rank,
        lora_alpha=int(shape.alpha) if shape.alpha == int(shape.alpha) else shape.alpha,
        lora_dropout=shape.dropout,
        target_modules=short_targets(model, modules),
        task_type="CAUSAL_LM",
        bias="none",
        base_model_name_or_path=base_name,
    )
    register(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers about itself
        adapted = peft.get_peft_model(model, config)
    for parameter in trained(adapted).values():
        parameter.data = parameter.data.float()
    return adapted


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def rounded(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the adapter to what its file will hold, so that what is measured is what is written."""
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.copy_(parameter.to(dtype))


def save_adapter(model: Any, folder: Path, dtype: torch.dtype, record: Mapping[str, Any]) -> None:
    """Write an adapter in PEFT's layout, each file whole: the configuration comes last.

    dtype: of the written tensors
    record: what bitsmith keeps of the run, in a file of its own
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    state: dict[str, Tensor] = get_peft_model_state_dict(model)
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in state.items()}
    config = model.peft_config[model.active_adapter].to_dict()
    config |= {"inference_mode": True, "target_modules": sorted(config["target_modules"])}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_whole(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())
    write_whole(folder / CONFIG, (json.dumps(config, indent=2, default=_plain) + "\n").encode())


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
