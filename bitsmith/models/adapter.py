"""Adapters (LoRA, Hu et al. 2021) in PEFT's layout: how they are read for a model, and how they know their base."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.containers.hf_folder import read_object
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import FileError, TensorError, UnsupportedError
from bitsmith.models.arch.block import linear_shapes
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.names import Naming, is_permuted, permute_rows
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.models.manifests import manifests_of

CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "bitsmith.json"
_LOG = logging.getLogger(__name__)  # the command line shows it, see `cli.notices`
_FLOATS = ("f32", "bf16", "f16")
_SLAB_BYTES = 1 << 24
_ENTRY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_LAYER = re.compile(r"(?:.*\.)?layers\.(?P<rest>\d+\..+)")
_UNKNOWN = {  # what changes the product, and what it must be
    "use_dora": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "fan_in_fan_out": (None, False),
    "lora_bias": (None, False),
    "layer_replication": (None, []),
}


@dataclass(frozen=True, eq=False)
class LowRank:
    """What an adapter adds to a matrix W [rows, cols]: W + scale * up down.

    down: float32 [rank, cols], PEFT's A
    up: float32 [rows, rank], PEFT's B
    """

    down: np.ndarray
    up: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        """Its rank."""
        return len(self.down)

    @property
    def scaled_up(self) -> np.ndarray:
        """up times the scale, float32 [rows, rank]."""
        return np.asarray(self.up * np.float32(self.scale), np.float32)

    def part(self, first: int, count: int) -> LowRank:
        """What it adds to some rows."""
        return LowRank(self.down, self.up[first : first + count], self.scale)

    def delta(self, start: int, stop: int) -> np.ndarray:
        """What it adds to rows start..stop: float32 [stop - start, cols], summed in float64."""
        found = self.up[start:stop].astype(np.float64) @ self.down.astype(np.float64)
        return np.asarray(found * self.scale, np.float32)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter for a model.

    layers: by GGUF name without ".weight", "blk.0.attn_q", in the order of rows that the model's files have
    checked: whether the model was seen to be its base
    """

    path: Path
    layers: Mapping[str, LowRank]
    alpha: float
    checked: bool

    def of(self, tensor: str) -> LowRank | None:
        """What it adds to a tensor, by its GGUF name."""
        return self.layers.get(tensor.removesuffix(".weight"))


def read_adapter(path: str | Path, checkpoint: Checkpoint, *, naming: Naming | None = None) -> Adapter:
    """Read an adapter for a model, and check that it belongs to it.

    path: a folder in PEFT's layout
    naming: in whose order of rows q and k are: Hugging Face's or GGUF's; None for that of the model's files
    Raises FileError for a damaged adapter and for one of another base, UnsupportedError for one that is more than LoRA
    on linear layers of the text decoder.
    """
    folder = Path(path).expanduser()
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileError(f"{folder}: there is no {name}; an adapter is a folder in PEFT's layout.")
    values = read_object(folder / CONFIG)
    alpha = _check_kind(folder, values)
    checked = _check_base(folder, checkpoint)
    if not checked:
        _LOG.warning("whether %s was trained on %s cannot be told", folder, checkpoint.name)
    halves: dict[str, dict[str, np.ndarray]] = {}
    source = SafetensorsSource(folder / WEIGHTS)
    for name, info in source.tensors.items():
        found = _ENTRY.fullmatch(name)
        if found is None or len(info.shape) != 2:
            raise UnsupportedError(f"{folder}: {name} is no matrix of LoRA; only LoRA on linear layers is read.")
        halves.setdefault(found["module"], {})[found["side"]] = source.rows(name)
    layers = {}
    for module, sides in halves.items():
        _check_rank(folder, module, sides, values.get("r"))
        own, low = _layer(folder, checkpoint, module, sides, (alpha, bool(values.get("use_rslora"))))
        layers[own] = _ordered(own, low, checkpoint.config) if (naming or checkpoint.naming) == "gguf" else low
    if not layers:
        raise FileError(f"{folder}: the adapter holds no matrices.")
    return Adapter(folder, layers, alpha, checked)


def _check_kind(folder: Path, values: Mapping[str, Any]) -> float:
    """The adapter's alpha. Raises UnsupportedError for another kind."""
    if values.get("peft_type") != "LORA":
        raise UnsupportedError(f"{folder / CONFIG}: peft_type is {values.get('peft_type')!r}; only LORA is read.")
    for key, plain in _UNKNOWN.items():
        if values.get(key) not in plain:
            raise UnsupportedError(f"{folder / CONFIG}: {key} is {values[key]!r}, which is not read; use peft for it.")
    alpha = values.get("lora_alpha")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise FileError(f"{folder / CONFIG}: expected lora_alpha to be a number, found {alpha!r}.")
    return float(alpha)


def _check_rank(folder: Path, module: str, sides: Mapping[str, np.ndarray], rank: Any) -> None:
    """Raise FileError where the configuration says another rank than the matrices have; the scale depends on it."""
    found = len(sides["A"]) if "A" in sides else None
    if found is not None and found != rank:
        raise FileError(
            f"{folder / CONFIG}: r is {rank!r}, but {module} has matrices of rank {found}; both files must be of one "
            "adapter."
        )


def _check_base(folder: Path, checkpoint: Checkpoint) -> bool:
    path = folder / RECORD
    known = read_object(path).get("base_tensors") if path.is_file() else None
    if not isinstance(known, dict):
        return False
    return check_base(checkpoint, {str(name): str(value) for name, value in known.items()}, folder)


def _layer(
    folder: Path, checkpoint: Checkpoint, module: str, sides: Mapping[str, np.ndarray], weight: tuple[float, bool]
) -> tuple[str, LowRank]:
    """The GGUF name of an adapted layer, and what is added to it."""
    config = checkpoint.config
    found = _LAYER.fullmatch(module)
    wanted = module if found is None else f"{checkpoint.names.prefix}layers.{found['rest']}"
    name = (checkpoint.names.gguf(f"{wanted}.weight") or "").removesuffix(".weight")
    number = re.match(r"blk\.(\d+)\.(.+)", name)
    shapes = linear_shapes(config, int(number[1])) if number and int(number[1]) < config.layers else {}
    shape = shapes.get(number[2]) if number else None
    if shape is None or number is None or "_exps" in name:
        raise UnsupportedError(f"{folder}: {module} is no linear layer of {checkpoint.name}'s blocks.")
    if config.specs[int(number[1])].mixer == "delta" and not number[2].startswith("ffn_"):
        raise UnsupportedError(f"{folder}: adapters on gated delta nets ({module}) run in transformers with peft only.")
    if set(sides) != {"A", "B"}:
        raise FileError(f"{folder}: {module} has only one of the two matrices; train the adapter again.")
    down, up = sides["A"], sides["B"]
    if (up.shape[0], down.shape[1]) != shape or up.shape[1] != down.shape[0]:
        raise FileError(
            f"{folder}: {module} adds {list(up.shape)} times {list(down.shape)}, but {checkpoint.name} has "
            f"{list(shape)} there; give the adapter's own base."
        )
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
        raise TensorError("holds NaN or infinite values; train the adapter again.", tensor=f"{folder}: {module}")
    alpha, stable = weight
    scale = alpha / (math.sqrt(len(down)) if stable else len(down))
    return name, LowRank(np.ascontiguousarray(down), np.ascontiguousarray(up), scale)


def _ordered(name: str, low: LowRank, config: ModelConfig) -> LowRank:
    """With the rows of q and k in GGUF's order."""
    if not (config.decoder.permuted and is_permuted(f"{name}.weight")):
        return low
    heads = config.heads if ".attn_q" in name else config.specs[int(name.split(".")[1])].kv_heads
    return replace(low, up=permute_rows(low.up, heads))


def tensor_hashes(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, str]:
    """Hashes by which an adapter knows its base, by name; tensors that the files have under another name are left out.

    They are of the stored bytes; in a folder of bitsmith's, of those that it was made from.
    """
    found = {record.name: record.source_sha256 for each in manifests_of(checkpoint.source) for record in each.tensors}
    if found:
        return {name: found[name] for name in names if name in found}
    for name in names:
        info = checkpoint.source.tensors.get(name)
        if info is None:
            continue
        digest = hashlib.sha256()
        step = max(1, _SLAB_BYTES // max(info.nbytes // max(info.rows, 1), 1))
        for start in range(0, info.rows, step):
            packed = checkpoint.source.packed(name, start, min(start + step, info.rows))
            for part in packed.parts.values():
                digest.update(np.ascontiguousarray(part).tobytes())
        found[name] = digest.hexdigest()
    return found


def check_base(checkpoint: Checkpoint, known: Mapping[str, str], adapter: Path) -> bool:
    """Whether a model was seen to be the one that an adapter was trained on, or made from it.

    known: hashes of tensors of the original by Hugging Face's names
    Compared are the stored bytes of three tensors, or what the manifest of a file of bitsmith's says of its source.
    False where neither is there. Raises FileError where they differ.
    """
    names = [name for name in known if name in checkpoint.source.tensors]
    seen = {record.name: record.source_sha256 for each in manifests_of(checkpoint.source) for record in each.tensors}
    compared: dict[str, str] = {}
    if seen:
        for name in known:
            stored = name if checkpoint.naming == "hf" else checkpoint.names.gguf(name)
            if stored in seen:
                compared[name] = seen[str(stored)]
    elif names:
        few = sorted({names[0], names[len(names) // 2], names[-1]})
        if all(checkpoint.source.tensors[name].layout in _FLOATS for name in few):
            compared = tensor_hashes(checkpoint, few)
    wrong = next((name for name, found in compared.items() if known[name] != found), None)
    if wrong is not None:
        raise FileError(
            f"{adapter}: this adapter was trained on another model than {checkpoint.name}: {wrong} has other weights "
            "there. Give the adapter's own base."
        )
    return bool(compared)
